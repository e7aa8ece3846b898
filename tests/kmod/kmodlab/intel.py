# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with VMX, EPT and VPID, emulated by Bochs. It is slow, and has one CPU."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import threading
import time
import tty
from pathlib import Path

from vmmlab.kernel import Kernel
from vmmlab.progress import LabError

from .cases import Case
from .machine import KERNEL_ARGUMENTS, Run

TOOLS = {
    "bochs": "bochs bochs-term bochsbios vgabios",
    "grub-mkrescue": "grub-common grub-pc-bin",
    "xorriso": "xorriso",
}
SLOWER = 10
LOOK_EVERY_S = 0.5
# With a debugger, Bochs shows the machine's screen on a terminal of its own, and says where.
SCREEN = re.compile(rb'connected to screen "(/dev/pts/\d+)"')
CONFIGURATION = """\
display_library: term
megs: 512
cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=1, ignore_bad_msrs=1
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={folder}/host.iso, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev={serial}
log: {folder}/bochs.log
panic: action=fatal
"""
GRUB = """\
set timeout=0
menuentry host {{
  linux /vmlinuz {append}
  initrd /initrd.gz
}}
"""


class IntelMachine:
    """``folder`` is an empty one, to work in."""

    vendor = "intel"

    def __init__(self, kernel: Kernel, initrd: Path, folder: Path) -> None:
        missing = [packages for tool, packages in TOOLS.items() if shutil.which(tool) is None]
        if missing:
            raise LabError(f"for the emulated Intel host install the packages {' '.join(missing)}")
        self._kernel = kernel
        self._initrd = initrd
        self._folder = folder

    def run(self, case: Case, config: str, log: Path) -> Run:
        """Bochs is ended when the case has said its last word, or when the machine was reset after it was ready."""
        self._make_disk(f"{KERNEL_ARGUMENTS} {case.arguments} kmod.case={case.name} kmod.config={config}")
        log.unlink(missing_ok=True)
        (self._folder / "bochs.log").unlink(missing_ok=True)
        (self._folder / "bochsrc").write_text(CONFIGURATION.format(folder=self._folder, serial=log))
        (self._folder / "commands").write_text("c\n")  # Debian's Bochs has a debugger, which waits for this
        master, slave = pty.openpty()
        began_s = time.monotonic()
        process = subprocess.Popen(
            ["bochs", "-q", "-f", str(self._folder / "bochsrc"), "-rc", str(self._folder / "commands")],
            cwd=self._folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)
        threading.Thread(target=_drain, args=(master,), daemon=True).start()
        try:
            while process.poll() is None and time.monotonic() < began_s + case.limit_s * SLOWER:
                if self._has_ended(log):
                    break
                time.sleep(LOOK_EVERY_S)  # a file that grows can only be looked at
        finally:
            process.kill()  # our own child, not reaped yet: the number is no other's
            process.wait()
        return Run(_text(log), self._has_ended(log), time.monotonic() - began_s)

    def _has_ended(self, log: Path) -> bool:
        words = re.findall(r"^KMOD: (\w+)", _text(log), re.MULTILINE)
        if not words:
            return False
        resets = _text(self._folder / "bochs.log").count("bx_pc_system_c::Reset(")
        return words[-1] != "ready" or resets > 1  # the first is power on

    def _make_disk(self, append: str) -> None:
        content = self._folder / "disk"
        (content / "boot" / "grub").mkdir(parents=True, exist_ok=True)
        shutil.copy(self._kernel.image, content / "vmlinuz")
        shutil.copy(self._initrd, content / "initrd.gz")
        (content / "boot" / "grub" / "grub.cfg").write_text(GRUB.format(append=append))
        command = ["grub-mkrescue", "-o", str(self._folder / "host.iso"), str(content)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"the disk of the Intel host cannot be made: {done.stderr.strip()[-300:]}")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _drain(descriptor: int) -> None:
    """Read what Bochs writes on its terminal, and on that of the screen, so that it never has to wait for a reader.

    It draws as time goes by: nobody would have to read in a run of a minute or two, in a longer one it stands still for ever.
    """
    told = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal:
        try:
            while said := terminal.read(65536):
                told += said
                if screen := SCREEN.search(told):
                    told = b""
                    threading.Thread(target=_drain_screen, args=(screen[1].decode(),), daemon=True).start()
        except OSError:
            pass  # the other end was closed


def _drain_screen(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(descriptor)  # it is drawn in no lines, which is what one reads of a terminal else
    _drain(descriptor)
