# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated host: an IOMMU, and devices behind it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmlab.artifact import BINARY
from vmmlab.kernel import Kernel

from .devices import BY_NAME, HUB

DISK_BYTES = 16 << 20
LOOK_EVERY_S = 0.5
# What the emulator needs of each IOMMU, and what the kernel has to be told. Linux 7 finds no I/O APIC in what QEMU tells of the
# AMD one, and does without the remapping of interrupts, which Linux 6.12 has: iommufd has to be told that this is all right.
IOMMUS = {
    "intel": (["-device", "intel-iommu,intremap=on,caching-mode=on"], "intel_iommu=on iommu=pt"),
    "amd": (["-device", "amd-iommu,intremap=on,xtsup=on,dma-remap=on"], "iommu=pt vfio.unremapped"),
}
# The device that stays the host's, which those passed through talk to. Alone on the hub it would wait for others for ever.
PEER = ("-netdev", f"{HUB},id=net-own", "-device", "virtio-net-pci,netdev=net-own,romfile=,addr=8")
KERNEL_ARGUMENTS = "console=ttyS0 loglevel=5 mitigations=off nokaslr panic=1 tsc=reliable no_timer_check net.ifnames=0"


@dataclass(frozen=True)
class Run:
    """``facts``: what the driver told, case by case. ``status``: what the emulator ended with by itself, none if it did not."""

    facts: list[dict[str, Any]]
    status: int | None
    seconds: float

    def why_not_so_far(self) -> str:
        """Why the driver did not come to a case that nothing was told of."""
        if self.status is None:
            return "the machine did not come so far in time"
        return f"the machine ended before it, its emulator with status {self.status}"


class Machine:
    """``emulator`` is the folder of the QEMU, ``folder`` one for disks, ``devices`` the names of what is passed through."""

    def __init__(self, emulator: Path, kernel: Kernel, folder: Path, devices: list[str]) -> None:
        self._emulator = emulator
        self._kernel = kernel
        self._folder = folder
        self._devices = [BY_NAME[name] for name in devices]

    def command(self, iommu: str, initrd: Path, more: str = "") -> list[str]:
        """The emulator's command line but for its serial ports; ``more`` is for the kernel."""
        arguments, kernel_arguments = IOMMUS[iommu]
        for device in self._devices:
            with open(self._folder / f"{device.name}.img", "wb") as disk:
                disk.truncate(DISK_BYTES)
        return [
            str(self._emulator / BINARY), "-L", str(self._emulator / "share/qemu"),
            "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-no-reboot",
            "-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off", "-smp", "2", "-m", "2G",
            *arguments,
            *(PEER if any(device.load == "net" for device in self._devices) else ()),
            *(word for device in self._devices for word in device.emulated_arguments(self._folder)),
            "-kernel", str(self._kernel.image), "-initrd", str(initrd),
            "-append", f"{KERNEL_ARGUMENTS} {kernel_arguments} {more}",
        ]  # fmt: skip

    def run(
        self,
        iommu: str,
        initrd: Path,
        log: Path,
        limit_s: float,
        told: Callable[[dict[str, Any]], None],
        ended: threading.Event,
    ) -> Run:
        """Boot, run the plan that ``initrd`` holds; ``log`` gets the console, and beside it the results.

        ``told`` hears each result when it comes. ``ended`` is set by whoever wants no more.
        """
        results = log.with_suffix(".jsonl")
        results.unlink(missing_ok=True)
        command = [
            *self.command(iommu, initrd),
            *("-monitor", "none", "-serial", f"file:{log}", "-serial", f"file:{results}"),
        ]
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        facts: list[dict[str, Any]] = []
        try:
            while process.poll() is None and time.monotonic() < began_s + limit_s and not ended.is_set():
                time.sleep(LOOK_EVERY_S)  # a file that grows can only be looked at
                for result in _read(results)[len(facts) :]:
                    facts.append(result)
                    told(result)
            status = process.returncode
        finally:
            process.kill()  # our own child, not reaped yet: the number is no other's
            process.wait()
        return Run(_read(results), status, time.monotonic() - began_s)

    def shell(self, iommu: str, initrd: Path) -> int:
        """The same host with its console here, and nothing done to a VM but what is typed. Ends with ``poweroff -f``."""
        return subprocess.run([*self.command(iommu, initrd, "vfio.shell"), "-serial", "mon:stdio"]).returncode


def _read(results: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    text = results.read_text(errors="replace") if results.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
