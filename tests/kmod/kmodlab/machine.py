# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the same for both emulated hosts: the initial root, and what a run is."""

from __future__ import annotations

import gzip
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmmlab.cpio import CpioArchive
from vmmlab.guest import BUSYBOX, require_static_busybox
from vmmlab.kernel import Kernel
from vmmlab.progress import LabError

from .builds import Modules
from .cases import Case

GUEST = Path(__file__).resolve().parent.parent / "guest"
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
PROGRAMS = {"vmload": ("vmload.c", "guest.S"), "vmclgi": ("vmclgi.c", "clgi.S")}
# The kernel's own KVM, and all that it or a core needs.
STOCK = {"kvm", "kvm_amd", "kvm_intel"}
NEEDED = "kvm_amd kvm_intel msr"
# Warnings of the kernel are to be seen, notices are not; a panic resets the machine after a second.
KERNEL_ARGUMENTS = "console=ttyS0 loglevel=5 mitigations=off nokaslr panic=1"


@dataclass(frozen=True)
class Run:
    """What came of a run: all that the machine wrote, and whether it ended by itself."""

    output: str
    ended: bool
    seconds: float

    def last_word(self) -> tuple[str, str]:
        """(``pass``, ``fail``, ``error``, ``ready`` or ``nothing``, the reason)."""
        words = re.findall(r"^KMOD: (\w+) ?(.*?)\r?$", self.output, re.MULTILINE)
        return words[-1] if words else ("nothing", "the machine did not come up")

    def figures(self) -> list[str]:
        """What the case has measured, a line each."""
        return re.findall(r"^FIGURE: (.*?)\r?$", self.output, re.MULTILINE)


@dataclass(frozen=True)
class Boot:
    """What a host boots: a kernel, and an initial root for cases without and with Python."""

    kernel: Kernel
    initrd: Path
    python_initrd: Path

    def initrd_for(self, case: Case) -> Path:
        return self.python_initrd if case.python else self.initrd


def compile_programs(folder: Path) -> list[Path]:
    """Compile the users of KVM, and return them. Raises LabError."""
    return [_compile(folder / name, sources) for name, sources in PROGRAMS.items()]


def _compile(target: Path, sources: tuple[str, ...]) -> Path:
    command = ["gcc", *CFLAGS, "-o", str(target), *(str(GUEST / source) for source in sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{target.name} does not compile (packages gcc and libc6-dev?):\n{done.stderr}")
    return target


def initial_root(programs: list[Path], kernel: Kernel, modules: Modules) -> bytes:
    """Return the initial root, packed."""
    require_static_busybox()
    archive = CpioArchive()
    archive.copy("bin/busybox", BUSYBOX)
    for program in programs:
        archive.copy(f"bin/{program.name}", program)
    archive.file("init", (GUEST / "init").read_bytes(), 0o755)
    for case in sorted((GUEST / "cases").iterdir()):
        archive.copy(f"cases/{case.name}", case)
    base = []
    for path in kernel.modules(NEEDED):
        archive.copy(f"m/{path.name}", path)
        if path.stem.replace("-", "_") not in STOCK:
            base.append(path.stem)
    for name, data in modules.files.items():
        archive.file(f"m/{name}.ko", data)
    archive.file("m/base", " ".join(base).encode())
    names = "".join(f"export {variable}={name}\n" for variable, name in modules.names.items())
    archive.file("m/names", names.encode())
    return gzip.compress(archive.data(), 1, mtime=0)


class Machine(Protocol):
    """An emulated host of one vendor."""

    vendor: str

    def run(self, case: Case, config: str, log: Path) -> Run:
        """Boot, run the case, and return what came of it; ``log`` gets the output."""
