# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab guest: a kernel, busybox and guestmon in an initial root."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

from .cache import Cache, file_sha256
from .cpio import CpioArchive
from .kernel import GUEST_MODULES, Kernel
from .progress import LabError, Progress

SOURCES = Path(__file__).resolve().parent.parent / "guest"
BUSYBOX = Path("/bin/busybox")
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]


def get_guest(cache: Cache, kernel: Kernel, progress: Progress) -> Path:
    """Folder with ``vmlinuz`` and ``initrd.gz`` of the guest, from the cache or built into it."""
    require_static_busybox()
    sources = {path.name: file_sha256(path) for path in sorted(SOURCES.iterdir())}
    material = {
        "format": 2,
        "sources": sources,
        "cflags": CFLAGS,
        "kernel": kernel.sha256,
        "busybox": file_sha256(BUSYBOX),
    }

    def build(folder: Path) -> None:
        progress.say(f"building the guest (guestmon, busybox, {kernel.release})")
        program = folder / "guestmon"
        command = ["gcc", *CFLAGS, "-o", str(program), str(SOURCES / "guestmon.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"guestmon does not compile (packages gcc and libc6-dev?):\n{done.stderr}")
        subprocess.run(["strip", str(program)], check=True)
        (folder / "initrd.gz").write_bytes(gzip.compress(initial_root(program, SOURCES / "init", kernel), 6, mtime=0))
        shutil.copy(kernel.image, folder / "vmlinuz")

    return cache.entry("guest", material, build)


def initial_root(program: Path, init: Path, kernel: Kernel, modules: str = GUEST_MODULES) -> bytes:
    """Return the initial root of a guest that runs ``program``, started by the script ``init``, as a cpio archive."""
    archive = CpioArchive()
    for name in ("proc", "sys", "dev", "bin"):
        archive.folder(name)
    archive.copy("bin/busybox", BUSYBOX)
    archive.copy(f"bin/{program.name}", program)
    archive.file("init", init.read_bytes(), 0o755)
    add_modules(archive, kernel.modules(modules))
    return archive.data()


def add_modules(archive: CpioArchive, modules: list[Path]) -> None:
    """Add modules under ``modules/``, named so that the shell's order is the order of loading."""
    for number, path in enumerate(modules):
        archive.copy(f"modules/{number:02}-{path.name}", path)


def require_static_busybox() -> None:
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing: install busybox-static")
    if b"/ld-linux" in BUSYBOX.read_bytes():
        raise LabError(f"{BUSYBOX} needs shared libraries: install busybox-static")
