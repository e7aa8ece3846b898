# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU around a host: command line and the question which accelerator works on this machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .artifact import BINARY
from .cache import Cache, file_sha256
from .image import HostImage
from .progress import Progress

PROBE_LIMIT_S = 40
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet mitigations=off nokaslr panic=5 tsc=reliable no_timer_check net.ifnames=0 "
    "systemd.show_status=false"
)
ACCELERATORS = {
    "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off"],
    "kvm": ["-accel", "kvm", "-cpu", "host"],
}


@dataclass(frozen=True)
class Emulator:
    """``folder`` is the staged QEMU, ``accelerator`` is ``tcg`` or ``kvm``."""

    folder: Path
    accelerator: str

    def argv(self, cpus: int, memory_mib: int) -> list[str]:
        """The part of the command line that no disk and no network is in."""
        return [
            str(self.folder / BINARY), "-L", str(self.folder / "share/qemu"),
            "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
            *ACCELERATORS[self.accelerator], "-smp", str(cpus), "-m", f"{memory_mib}M",
            "-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
        ]  # fmt: skip


def kernel_argv(image: HostImage, initrd: Path, extra: str) -> list[str]:
    return ["-kernel", str(image.kernel.image), "-initrd", str(initrd), "-append", f"{KERNEL_ARGUMENTS} {extra}"]


def disk_argv(disk: Path, image_format: str, snapshot: bool = False) -> list[str]:
    """A host's disk. It never has to survive the machine the lab runs on, so nothing waits for it to be written."""
    drive = f"if=none,id=disk0,file={_escaped(disk)},format={image_format},cache=unsafe,discard=unmap"
    return ["-drive", drive + (",snapshot=on" if snapshot else ""), "-device", "virtio-blk-pci,drive=disk0"]


def choose_accelerator(cache: Cache, folder: Path, image: HostImage, progress: Progress) -> str:
    """``kvm`` when a lab host really boots under it and can run VMs itself, else ``tcg``.

    That ``/dev/kvm`` opens says little: there are hosts whose KVM runs no stock kernel. So the host kernel is booted
    under it once, with a time limit; the answer is kept per host kernel, CPU, QEMU and image.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    material = {
        "format": 2,
        "host_kernel": platform.release(),
        "cpu": _cpu_model(),
        "qemu": file_sha256(folder / BINARY),
        "guest_kernel": image.kernel.sha256,
    }

    def build(target: Path) -> None:
        progress.say(f"probing KVM: booting a lab host under it, for {PROBE_LIMIT_S} s at most")
        verdict, why = _probe(folder, image)
        progress.say(f"probe says {verdict}: {why}")
        (target / "verdict").write_text(f"{verdict}\n{why}\n")

    return (cache.entry("probe", material, build) / "verdict").read_text().splitlines()[0]


def _probe(folder: Path, image: HostImage) -> tuple[str, str]:
    command = [
        *Emulator(folder, "kvm").argv(1, 1024),
        *kernel_argv(image, image.initrd, "lab.init=/usr/local/lib/vmm-lab/probe"),
        *disk_argv(image.disk, "raw", snapshot=True),
        "-no-reboot", "-serial", "stdio", "-monitor", "none",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PROBE_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return "tcg", f"the kernel did not come up under KVM within {PROBE_LIMIT_S} s"
    found = re.search(r"LAB-PROBE: (.*)", done.stdout)
    if found is None:
        return "tcg", f"the kernel did not come up under KVM: {(done.stderr.strip() or done.stdout[-200:].strip())!r}"
    return ("kvm" if found[1].strip() == "ok" else "tcg"), found[1].strip()


def _cpu_model() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")
