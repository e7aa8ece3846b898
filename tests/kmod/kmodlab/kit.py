# SPDX-License-Identifier: GPL-3.0-or-later
"""The initial root of an emulated machine that stands for a real one: the kit's folder, and kexec-tools to boot out of it."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

from vmmlab.cpio import CpioArchive
from vmmlab.guest import BUSYBOX, require_static_busybox
from vmmlab.progress import LabError

from .machine import GUEST

KEXEC = "/usr/sbin/kexec"


def kit_root(folder: Path, line: str, root: Path) -> bytes:
    """Return the initial root with what of ``folder`` the case of this ``line`` takes, and kexec-tools of ``root``, packed."""
    require_static_busybox()
    archive = CpioArchive()
    archive.copy("bin/busybox", BUSYBOX)
    archive.file("init", (GUEST / "kit-init").read_bytes(), 0o755)
    kernel, initrd = line.split()[2:4]
    for name in ("run-case", "cases", kernel, initrd):
        if not (folder / name).is_file():
            raise LabError(f"there is no {folder / name}: have the folder written first")
        archive.copy(f"kit/{name}", folder / name)
    for path in (KEXEC, *_libraries(root, KEXEC)):
        archive.copy(path.lstrip("/"), root / path.lstrip("/"))
    return gzip.compress(archive.data(), 1, mtime=0)


def _libraries(root: Path, program: str) -> list[str]:
    """The shared libraries that a program of ``root`` needs, by the names that they are looked for there."""
    done = subprocess.run(["chroot", str(root), "ldd", program], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{program} cannot be looked at in {root}: {done.stderr.strip()}")
    return sorted(re.findall(r"(/\S+) \(0x", done.stdout))
