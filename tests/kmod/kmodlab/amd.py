# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with SVM, emulated by QEMU."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from vmmlab.artifact import BINARY

from .cases import DEBIAN, DEBUG, Case
from .machine import KERNEL_ARGUMENTS, Boot, Run

MEMORY = {DEBIAN: "1G", DEBUG: "2G"}


class AmdMachine:
    """Two CPUs; ``emulator`` is the folder of the QEMU, ``boots`` has a boot for each kernel that cases want."""

    vendor = "amd"

    def __init__(self, emulator: Path, boots: dict[str, Boot]) -> None:
        self._emulator = emulator
        self._boots = boots

    def run(self, case: Case, config: str, log: Path) -> Run:
        """A reset ends QEMU, as power off does."""
        boot = self._boots[case.kernel]
        threads = "single" if case.one_thread else "multi"
        append = f"{KERNEL_ARGUMENTS} tsc=reliable no_timer_check {case.arguments}"
        command = [
            str(self._emulator / BINARY), "-L", str(self._emulator / "share/qemu"),
            "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-no-reboot",
            "-accel", f"tcg,thread={threads}", "-cpu", "max,la57=off", "-smp", "2", "-m", MEMORY[case.kernel],
            "-serial", f"file:{log}", "-monitor", "none",
            "-kernel", str(boot.kernel.image), "-initrd", str(boot.initrd_for(case)),
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
