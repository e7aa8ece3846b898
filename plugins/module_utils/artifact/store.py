# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builds staged on a host: ``builds/<build_id>`` below the state directory.

A build appears there whole and verified, by one rename, or not at all. PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.archive import (
    StoreError,
    delete,
    locked,
    unpack,
    verified_manifest,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.manifest import BUILD_ID, Manifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import ManifestError

BINARY = "bin/qemu-system-x86_64"
_DEFAULT = "default"
_SMOKE_S = 60


@dataclass(frozen=True)
class StagedBuild:
    """A build on this host. ``path`` is its prefix."""

    path: Path
    manifest: Manifest


class BuildStore:
    """The builds of one host."""

    def __init__(self, state_dir: Path) -> None:
        """``state_dir`` need not exist; it is made when something is staged."""
        self._builds = state_dir / "builds"

    def get(self, build_id: str) -> StagedBuild:
        """Return a staged build. Raises ``StoreError`` for what is not a build id or not staged here."""
        if not BUILD_ID.fullmatch(build_id):
            raise StoreError(f"{build_id!r} is not a build id (qemu-<version>-<16 hex digits>)")
        path = self._builds / build_id
        if not path.is_dir():
            staged = ", ".join(build.manifest.build_id for build in self.list()) or "none"
            raise StoreError(
                f"build {build_id} is not staged on {os.uname().nodename}; staged: {staged}. "
                "Nothing was touched; stage it first (playbooks/stage.yml)"
            )
        return StagedBuild(path, Manifest.load(path))

    def list(self) -> Sequence[StagedBuild]:
        """Return the staged builds, the one staged last at the end. One with an unreadable manifest is passed over."""
        builds = []
        for path in sorted(self._paths(), key=lambda build: build.stat().st_mtime_ns):
            with contextlib.suppress(ManifestError):
                builds.append(StagedBuild(path, Manifest.load(path)))
        return builds

    def stage(self, artifact: Path, sha256: str | None = None, allowed_signers: Path | None = None) -> StagedBuild:
        """Verify ``artifact`` and put its build into the store; one that is there already is left alone.

        ``sha256``: expected digest, by default what ``<artifact>.sha256`` says. With ``allowed_signers`` the signature
        ``<artifact>.sig`` is required. Raises ``LiveUpgradeError``; nothing is left behind then.
        """
        manifest = verify_artifact(artifact, sha256, allowed_signers)
        self._builds.mkdir(parents=True, exist_ok=True, mode=0o755)
        with locked(self._builds):
            target = self._builds / manifest.build_id
            if not target.is_dir():
                unpack(artifact, manifest, target, lambda prefix: smoke_run(prefix, manifest))
            return StagedBuild(target, manifest)

    def remove(self, build_id: str) -> bool:
        """Remove a build; False when it was not there. Raises ``StoreError`` when a process runs it or new VMs would."""
        target = self._builds / build_id
        if not BUILD_ID.fullmatch(build_id) or not target.is_dir():
            return False
        with locked(self._builds):
            self.check_removable(build_id)
            delete(target)
        return True

    def check_removable(self, build_id: str) -> None:
        """Raise ``StoreError`` when new VMs would start on ``build_id`` or a process runs it."""
        if self.default() == build_id:
            raise StoreError(f"build {build_id} is what new VMs start on; set another default before removing it")
        users = processes_running(self._builds / build_id)
        if users:
            pids = ", ".join(map(str, users))
            raise StoreError(f"build {build_id} is in use by process {pids}; upgrade or end these VMs first")

    def prune(self, keep: int, *, dry_run: bool = False) -> Sequence[str]:
        """Remove all but the ``keep`` builds staged last and return what was removed.

        The default and what any process runs from are never removed, and do not count.
        """
        idle = [
            build.manifest.build_id
            for build in self.list()
            if build.manifest.build_id != self.default() and not processes_running(build.path)
        ]
        surplus = idle[: max(0, len(idle) - keep)]
        return surplus if dry_run else [build_id for build_id in surplus if self.remove(build_id)]

    def default(self) -> str | None:
        """Return the build that newly started VMs run, or None."""
        try:
            return os.path.basename(os.readlink(self._builds / _DEFAULT))
        except FileNotFoundError:
            return None

    def set_default(self, build_id: str) -> None:
        """Let newly started VMs run ``build_id``: one atomic change of a symbolic link. Raises ``StoreError``."""
        self.get(build_id)
        with locked(self._builds):
            temporary = self._builds / f".{_DEFAULT}-{os.getpid()}"
            os.symlink(build_id, temporary)
            os.replace(temporary, self._builds / _DEFAULT)

    def _paths(self) -> Sequence[Path]:
        if not self._builds.is_dir():
            return []
        return [path for path in self._builds.iterdir() if path.is_dir() and BUILD_ID.fullmatch(path.name)]


def verify_artifact(artifact: Path, sha256: str | None = None, allowed_signers: Path | None = None) -> Manifest:
    """Check digest, signature, members, manifest and architecture of an artifact. Raises ``LiveUpgradeError``."""
    return verified_manifest(Manifest, artifact, sha256, allowed_signers)


def smoke_run(prefix: Path, manifest: Manifest) -> None:
    """Run the build's binary: it must load here, say its build id and know its machine types. Raises ``StoreError``."""
    version = _run(prefix, "--version")
    if manifest.build_id not in version:
        raise StoreError(f"the binary of {manifest.build_id} says it is another: {version.splitlines()[0]}")
    known = _run(prefix, "-machine", "help")
    missing = [name for name in manifest.machine_types if not re.search(rf"^{re.escape(name)}\s", known, re.MULTILINE)]
    if missing:
        raise StoreError(f"the binary of {manifest.build_id} does not know machine type {missing[0]}")


def processes_running(build: Path) -> list[int]:
    """Return the processes whose executable lies in ``build``, deleted or not."""
    found = []
    prefix = f"{build.resolve()}{os.sep}"
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/exe").startswith(prefix):
                    found.append(int(entry))
            except OSError:
                continue  # ended meanwhile, or a kernel thread
    return sorted(found)


def _run(prefix: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [str(prefix / BINARY), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SMOKE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StoreError(f"the build does not run on this host: {exc}") from exc
    if done.returncode:
        missing = re.search(r"shared libraries: (\S+):", done.stderr)
        why = f"shared library {missing[1]} is not installed" if missing else done.stderr.strip()[-300:]
        raise StoreError(f"the build does not run on this host: {why or f'status {done.returncode}'}")
    return done.stdout
