# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with SVM, emulated by QEMU."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from vmmlab.artifact import BINARY
from vmmlab.kernel import Kernel

from .cases import Case
from .machine import KERNEL_ARGUMENTS, Run


class AmdMachine:
    """Two CPUs; ``emulator`` is the folder of the QEMU."""

    vendor = "amd"

    def __init__(self, emulator: Path, kernel: Kernel, initrd: Path, python_initrd: Path) -> None:
        self._emulator = emulator
        self._kernel = kernel
        self._initrds = {False: initrd, True: python_initrd}

    def run(self, case: Case, config: str, log: Path) -> Run:
        """A reset ends QEMU, as power off does."""
        threads = "single" if case.one_thread else "multi"
        append = f"{KERNEL_ARGUMENTS} tsc=reliable no_timer_check {case.arguments}"
        command = [
            str(self._emulator / BINARY), "-L", str(self._emulator / "share/qemu"),
            "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-no-reboot",
            "-accel", f"tcg,thread={threads}", "-cpu", "max,la57=off", "-smp", "2", "-m", "1G",
            "-serial", f"file:{log}", "-monitor", "none",
            "-kernel", str(self._kernel.image), "-initrd", str(self._initrds[case.python]),
            "-append", f"{append} kmod.case={case.name} kmod.config={config}",
        ]  # fmt: skip
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            process.wait(case.limit_s)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            process.kill()  # our own child, not reaped yet: the number is no other's
            process.wait()
        return Run(log.read_text(errors="replace"), ended, time.monotonic() - began_s)
