# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts as files: written whole, with their digest beside them. PRIVATE to the collection."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


def pack(prefix: Path, artifact: Path) -> None:
    """Write the archive so that the same prefix gives the same bytes, and its digest beside it; both atomically."""
    artifact.parent.mkdir(parents=True, exist_ok=True)
    temporary = artifact.with_suffix(".new")
    with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(prefix.rglob("*")):
                archive.add(path, str(path.relative_to(prefix)), recursive=False, filter=_anonymous)
    _sidecar(artifact).write_text(f"{sha256_of(temporary)}  {artifact.name}\n")
    os.replace(temporary, artifact)


def finished(artifact: Path) -> bool:
    """Tell whether the artifact is there. Raises ``LiveUpgradeError`` when it is not what was written."""
    sidecar = _sidecar(artifact)
    if not artifact.exists() or not sidecar.exists():
        return False
    if sidecar.read_text().split()[0] != sha256_of(artifact):
        raise LiveUpgradeError(
            f"{artifact} does not have the digest noted in {sidecar.name}: it was changed; delete both"
        )
    return True


def _sidecar(artifact: Path) -> Path:
    return artifact.with_name(f"{artifact.name}.sha256")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = 0
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
