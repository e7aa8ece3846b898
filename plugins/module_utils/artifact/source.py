# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources of a build: fetched and verified, unpacked, patched. PRIVATE to the collection.

A source is known by the SHA-256 of what it was fetched as (a directory: of its files), never by its version or address.
Not for the engine, which outlives the module call and cannot use what Ansible brings.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

Say = Callable[[str], None]
_TIMEOUT_S = 60


class SourceError(LiveUpgradeError):
    """A source could not be had, is not what it should be, or a patch does not apply."""


@dataclass(frozen=True)
class Candidate:
    """One place a source may come from: exactly one of ``url``, ``path``, ``debian_pool`` and ``directory``.

    All but the last name a tarball or a .dsc; ``debian_pool`` is a path below a Debian archive (``pool/main/...``), which is
    looked for on the mirrors that this machine's apt uses.
    """

    url: str | None = None
    path: str | None = None
    debian_pool: str | None = None
    directory: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be verified. Raises ``SourceError``."""
        if sum(place is not None for place in (self.url, self.path, self.debian_pool, self.directory)) != 1:
            raise SourceError("a source is given by exactly one of url, path, debian_pool and directory")
        if self.directory is None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise SourceError(f"source {self.name}: sha256 is required, 64 hex digits")

    @property
    def name(self) -> str:
        """File name or directory name, for people."""
        return os.path.basename((self.url or self.path or self.debian_pool or self.directory or "").rstrip("/"))

    def places(self) -> list[str]:
        """Return the addresses or paths to try. Raises ``FileNotFoundError`` where apt knows no mirror."""
        if self.debian_pool is not None:
            return [f"{mirror}/{self.debian_pool}" for mirror in debian_mirrors()]
        return [self.url or str(Path(self.path or "").resolve())]


@dataclass(frozen=True)
class Source:
    """A source at hand. ``archives``: what to unpack, first the one that makes the tree; ``sha256`` names it."""

    name: str
    sha256: str
    archives: tuple[Path, ...]
    directory: Path | None = None


@dataclass(frozen=True)
class Patch:
    """One patch of a series, or one file of an overlay, by content."""

    name: str
    sha256: str
    path: Path


def obtain(candidates: Sequence[Candidate], cache: Path, say: Say) -> Source:
    """Return the first candidate that can be had, fetched into ``cache`` and verified.

    An index can be ahead of the pool it describes, so a missing file leads to the next candidate; a file that is there
    and is not what was expected is an error. Raises ``SourceError``.
    """
    missing = []
    for candidate in candidates:
        try:
            source = _obtain_one(candidate, cache, say)
        except FileNotFoundError as exc:
            missing.append(f"{candidate.name} ({exc})")
            say(f"source {candidate.name} is not there: {exc}")
            continue
        say(f"source: {source.name} sha256 {source.sha256}")
        return source
    raise SourceError(f"no source can be had: {'; '.join(missing) or 'no candidate was given'}")


def debian_mirrors() -> list[str]:
    """Return the Debian archives that this machine's apt is set up with. Raises ``FileNotFoundError`` when there are none.

    Indexes need not have been fetched.
    """
    try:
        shown = subprocess.run(
            ["apt-get", "--print-uris", "update"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except OSError as exc:
        raise FileNotFoundError("this machine has no apt") from exc
    mirrors = dict.fromkeys(re.findall(r"^'(https?://\S+?)/dists/", shown.stdout, re.MULTILINE))
    if not mirrors:
        raise FileNotFoundError("apt is set up with no mirror that is reached by http")
    return list(mirrors)


def unpack(source: Source, target: Path) -> None:
    """Make the source tree in ``target``, which must not exist; a Debian package's own patches are applied.

    Raises ``SourceError``.
    """
    if source.directory is not None:
        shutil.copytree(source.directory, target, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        return
    target.mkdir(parents=True)
    _run("tar", "--no-same-owner", "--strip-components=1", "-C", str(target), "-xf", str(source.archives[0]))
    for archive in source.archives[1:]:
        _run("tar", "--no-same-owner", "-C", str(target), "-xf", str(archive))
        apply_patches(read_series(target / "debian" / "patches"), target)


def read_series(directory: Path | None) -> list[Patch]:
    """Return the patches named by the ``series`` file of ``directory``, in order; none when there is no such file.

    Raises ``SourceError`` for a patch that is named and missing or lies outside.
    """
    return _listed(directory, "series")


def read_overlay(directory: Path | None) -> list[Patch]:
    """Return the files named by the file ``files`` of ``directory``; none when there is no such file.

    Raises ``SourceError`` as ``read_series``.
    """
    return _listed(directory, "files")


def _listed(directory: Path | None, index: str) -> list[Patch]:
    if directory is None or not (directory / index).exists():
        return []
    names = [line.split("#")[0].split() for line in (directory / index).read_text().splitlines()]
    found = []
    for name in (words[0] for words in names if words):
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
            raise SourceError(f"{directory / index} names {name}, which is not a file below it")
        found.append(Patch(name, sha256_of(path), path))
    return found


def lay_over(files: Sequence[Patch], tree: Path) -> None:
    """Copy overlay files into ``tree``. They are new files: one that the source has already is a ``SourceError``."""
    for file in files:
        target = tree / file.name
        if target.exists():
            raise SourceError(f"the source has a {file.name} already; what changes files is a patch")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)


def apply_patches(patches: Sequence[Patch], tree: Path) -> None:
    """Apply ``patches`` to ``tree`` with no fuzz. Raises ``SourceError`` naming the patch that does not apply."""
    for patch in patches:
        try:
            _run(
                "patch",
                "-p1",
                "--fuzz=0",
                "--forward",
                "--no-backup-if-mismatch",
                "-d",
                str(tree),
                "-i",
                str(patch.path),
            )
        except SourceError as exc:
            raise SourceError(f"patch {patch.name} does not apply: {exc}") from exc


def _obtain_one(candidate: Candidate, cache: Path, say: Say) -> Source:
    if candidate.directory is not None:
        directory = Path(candidate.directory)
        if not (directory / "configure").is_file():
            raise SourceError(f"{directory} is not a QEMU source tree: it has no configure")
        return Source(candidate.name, _sha256_of_tree(directory), (), directory)
    missing = []
    for place in candidate.places():
        try:
            return _obtain_from(place, candidate, cache, say)
        except FileNotFoundError as exc:
            missing.append(f"{place}: {exc}")
    raise FileNotFoundError("; ".join(missing))


def _obtain_from(place: str, candidate: Candidate, cache: Path, say: Say) -> Source:
    first = _verified(place, str(candidate.sha256), cache, say)
    if not place.endswith(".dsc"):
        return Source(candidate.name, str(candidate.sha256), (first,))
    parts = [_verified(f"{os.path.dirname(place)}/{name}", digest, cache, say) for name, digest in _parts_of(first)]
    return Source(candidate.name, str(candidate.sha256), tuple(parts))


def _parts_of(dsc: Path) -> list[tuple[str, str]]:
    """Return (name, sha256) of the orig and debian archives that a Debian source description lists, orig first."""
    listed = re.search(r"^Checksums-Sha256:\n((?: .*\n)+)", dsc.read_text(errors="replace"), re.MULTILINE)
    fields = [line.split() for line in listed.group(1).splitlines()] if listed else []
    wanted = [(name, digest) for digest, _size, name in fields if re.search(r"\.(orig|debian)\.tar\.[a-z0-9]+$", name)]
    if not wanted:
        raise SourceError(f"{dsc.name} lists no orig archive with a SHA-256")
    return sorted(wanted, key=lambda item: ".orig." not in item[0])


def _verified(place: str, sha256: str, cache: Path, say: Say) -> Path:
    """Return a local file with that digest, from the cache, the path or the network. Raises ``FileNotFoundError``."""
    kept = cache / f"{sha256[:16]}-{os.path.basename(place)}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as temporary:
            try:
                _fetch(place, temporary, say)
                temporary.flush()
                found = sha256_of(Path(temporary.name))
                if found != sha256:
                    raise SourceError(f"{place} has SHA-256 {found}, expected was {sha256}; it is not used")
                os.replace(temporary.name, kept)
            except BaseException:
                os.unlink(temporary.name)
                raise
    elif sha256_of(kept) != sha256:
        raise SourceError(f"{kept} has changed since it was verified; delete it")
    return kept


def _fetch(place: str, stream: Any, say: Say) -> None:
    if "://" not in place:
        with open(place, "rb") as local:
            shutil.copyfileobj(local, stream)
        return
    if not place.startswith(("https://", "http://")):
        raise SourceError(f"{place}: only http and https are fetched")
    say(f"fetching {place}")
    try:
        # What is verified is what the server has: nothing is unpacked on the way.
        with open_url(place, timeout=_TIMEOUT_S, decompress=False) as response:
            shutil.copyfileobj(response, stream)
    except urllib.error.HTTPError as exc:
        if exc.code in (404, 410):
            raise FileNotFoundError(f"{exc.code} {exc.reason}") from exc
        raise SourceError(f"{place}: {exc.code} {exc.reason}") from exc
    except OSError as exc:
        raise FileNotFoundError(str(exc)) from exc


def _sha256_of_tree(directory: Path) -> str:
    """Digest names, modes and contents of all files but git's own."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if relative.parts[0] == ".git":
            continue
        if path.is_symlink():
            digest.update(f"{relative}\0link\0{os.readlink(path)}\0".encode())
        elif path.is_file():
            digest.update(f"{relative}\0{path.stat().st_mode & 0o111:o}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(" | ".join((done.stdout + done.stderr).strip().splitlines()[-3:]))
