# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an artifact to a folder of a store: verified, and whole by one rename or not at all. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.signature import verify_signature
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import (
    MANIFEST_NAME,
    TypedManifest,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

_SPARE_BYTES = 64 << 20
_M = TypeVar("_M", bound=TypedManifest)


class StoreError(LiveUpgradeError):
    """A build cannot be staged, found or removed."""


def verified_manifest(
    kind: type[_M], artifact: Path, sha256: str | None = None, allowed_signers: Path | None = None
) -> _M:
    """Check digest, signature, members, manifest and architecture of an artifact. Raises ``LiveUpgradeError``.

    ``sha256``: expected digest, by default what ``<artifact>.sha256`` says. With ``allowed_signers`` the signature
    ``<artifact>.sig`` is required.
    """
    if not artifact.is_file():
        raise StoreError(f"there is no artifact {artifact}")
    expected = sha256 or _sidecar_digest(artifact)
    actual = sha256_of(artifact)
    if actual != expected:
        raise StoreError(f"{artifact.name} is refused: its SHA-256 is {actual}, expected was {expected}")
    if allowed_signers is not None:
        verify_signature(artifact, artifact.with_name(f"{artifact.name}.sig"), allowed_signers)
    try:
        with tarfile.open(artifact) as archive:
            for member in archive:
                _check_member(artifact, member)
            manifest = kind.from_dict(json.loads(_open_member(artifact, archive, MANIFEST_NAME).read()))
    except (tarfile.TarError, KeyError, EOFError, ValueError) as exc:
        raise StoreError(f"{artifact.name} is refused: it is not an artifact of this collection ({exc})") from exc
    if manifest.architecture != platform.machine():
        raise StoreError(
            f"{artifact.name} is refused: it is for {manifest.architecture}, this host is {platform.machine()}"
        )
    return manifest


def unpack(artifact: Path, manifest: TypedManifest, target: Path, check: Callable[[Path], None]) -> None:
    """Unpack a verified artifact to ``target``, once ``check`` has found the folder good. The store is locked by the caller.

    Raises ``LiveUpgradeError``; nothing is left behind then.
    """
    store = target.parent
    for leftover in store.glob(".staging-*"):
        shutil.rmtree(leftover)  # of a run that was killed; we hold the lock
    with tarfile.open(artifact) as archive:
        needed = sum(member.size for member in archive)
    free = shutil.disk_usage(store).free
    if free < needed + _SPARE_BYTES:
        raise StoreError(
            f"{store} has {free >> 20} MiB free, build {manifest.build_id} needs {(needed + _SPARE_BYTES) >> 20} MiB"
        )
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
    try:
        _extract(artifact, staging)
        _verify_files(staging, manifest)
        check(staging)
        _sync(staging)
        os.chmod(staging, 0o755)  # noqa: S103 - VMs run from it as users of their own
        os.rename(staging, target)
        _sync_directory(store)
    except OSError as exc:
        raise StoreError(f"build {manifest.build_id} was not staged: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def delete(target: Path) -> None:
    """Delete a build: it is gone by one rename. The store is locked by the caller."""
    doomed = Path(tempfile.mkdtemp(prefix=".staging-", dir=target.parent)) / "build"
    os.rename(target, doomed)
    shutil.rmtree(doomed.parent)


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the lock of a store."""
    with open(store / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sidecar_digest(artifact: Path) -> str:
    sidecar = artifact.with_name(f"{artifact.name}.sha256")
    try:
        words = sidecar.read_text(encoding="ascii").split()
    except OSError as exc:
        raise StoreError(f"{artifact.name} is refused: no sha256 was given and {sidecar} is not there") from exc
    if not words or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise StoreError(f"{artifact.name} is refused: {sidecar} holds no SHA-256")
    return words[0]


def _check_member(artifact: Path, member: tarfile.TarInfo) -> None:
    """Plain files and directories with safe names only: nothing an artifact needs is anything else."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()) or member.mode & 0o7022:
        raise StoreError(f"{artifact.name} is refused: its member {member.name!r} is not a plain file in a safe place")


def _open_member(artifact: Path, archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    if stream is None:
        name = member if isinstance(member, str) else member.name
        raise StoreError(f"{artifact.name} is refused: its member {name!r} is not a file")
    return stream


def _extract(artifact: Path, target: Path) -> None:
    with tarfile.open(artifact) as archive:
        for member in archive:
            _check_member(artifact, member)
            path = target / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                shutil.copyfileobj(_open_member(artifact, archive, member), stream)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _verify_files(prefix: Path, manifest: TypedManifest) -> None:
    present = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()} - {MANIFEST_NAME}
    if present != set(manifest.files):
        odd = sorted(present ^ set(manifest.files))
        raise StoreError(f"{manifest.build_id} is refused: files and manifest differ in {', '.join(odd[:5])}")
    for name in manifest.files:
        verify_file(prefix, manifest, name)


def verify_file(prefix: Path, manifest: TypedManifest, name: str) -> None:
    """Raise ``StoreError`` when the file is not the one that the manifest lists."""
    if sha256_of(prefix / name) != manifest.files[name]:
        raise StoreError(f"{manifest.build_id} is refused: {name} is not the file that the manifest lists")


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            _sync_directory(path)
    _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
