# SPDX-License-Identifier: GPL-3.0-or-later
"""A Linux guest that keeps disks, network and a serial line busy: its files, its boot, and what it says of itself."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ansible_collections.vmm.live_upgrade.tests.lab.vmmlab.cache import Cache, default_root, file_sha256
from ansible_collections.vmm.live_upgrade.tests.lab.vmmlab.guest import (
    BUSYBOX,
    CFLAGS,
    SOURCES,
    initial_root,
    require_static_busybox,
)
from ansible_collections.vmm.live_upgrade.tests.lab.vmmlab.kernel import get_kernel
from ansible_collections.vmm.live_upgrade.tests.lab.vmmlab.progress import Progress

STATUS_PAGE = 0x8000000
COUNTER_OFFSET = STATUS_PAGE + 16
MEMORY_MIB = 192
GUEST_ADDRESS = "10.99.0.2"
HOST_ADDRESS = "10.99.0.1"
ECHO_PORT = 7
WRITERS = 4
_OWN = Path(__file__).resolve().parent / "guest"
# The same as in guestload.c.
_PAGE_MAGIC = 0x564D4D4C4F414401
_HEAD = struct.Struct("<8Q")
_DISK = struct.Struct(f"<{4 + WRITERS}Q")


@dataclass(frozen=True)
class DiskStatus:
    """What the guest's writers of one disk did; ``done``: each one's last record."""

    records: int
    errors: int
    mismatches: int
    slots: int
    done: tuple[int, ...]


@dataclass(frozen=True)
class Status:
    """The guest's status page."""

    nonce: int
    counter: int
    complaints: int
    net_bytes: int
    ticks: int
    disks: list[DiskStatus]

    @property
    def records(self) -> int:
        """How many records were written to all disks."""
        return sum(disk.records for disk in self.disks)

    @property
    def failures(self) -> int:
        """How often the guest saw something go wrong."""
        return self.complaints + sum(disk.errors + disk.mismatches for disk in self.disks)


def parse_status(page: bytes) -> Status | None:
    """Return what a status page says; None while the guest has not set it up."""
    magic, nonce, counter, complaints, net_bytes, _lines, ticks, disks = _HEAD.unpack_from(page)
    if magic != _PAGE_MAGIC:
        return None
    words = [_DISK.unpack_from(page, _HEAD.size + number * _DISK.size) for number in range(disks)]
    return Status(
        nonce,
        counter,
        complaints,
        net_bytes,
        ticks,
        [DiskStatus(word[0], word[1], word[2], word[3], word[4:]) for word in words],
    )


def boot_arguments(disks: int, tick_us: int = 1000, record_us: int = 1000) -> list[str]:
    """Return QEMU's arguments that boot the guest: one CPU, the kernel, nothing else."""
    folder = guest_folder()
    words = (
        "console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable panic=1 net.ifnames=0 pci=lastbus=0 "
        f"memmap=64K${STATUS_PAGE:#x} load.ip={GUEST_ADDRESS} load.disks={disks} load.tick_us={tick_us} "
        f"load.record_us={record_us}"
    )
    return [*("-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd.gz", "-append", words)]


def linux_accel() -> str:
    """Return ``kvm`` where the processor itself runs guests, else ``tcg``. ``VMM_TEST_ACCEL`` overrides.

    A host's ``/dev/kvm`` may be of another kind, which runs small guests but not a stock kernel.
    """
    forced = os.environ.get("VMM_TEST_ACCEL")
    if forced:
        return forced
    real = any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd"))
    return "kvm" if real and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def cpu_arguments(accel: str) -> list[str]:
    """Return a CPU that both builds see alike."""
    return ["-cpu", "host" if accel == "kvm" else "qemu64"]


@cache
def guest_folder() -> Path:
    """Return the folder with ``vmlinuz`` and ``initrd.gz``: from the lab's cache, or built into it."""
    require_static_busybox()
    lab_cache, progress = Cache(default_root() / "lab"), Progress()
    kernel = get_kernel(lab_cache, "guest", progress)
    sources = [*sorted(_OWN.iterdir()), SOURCES / "record.h"]
    material = {
        "format": 1,
        "sources": {path.name: file_sha256(path) for path in sources},
        "cflags": CFLAGS,
        "kernel": kernel.sha256,
        "busybox": file_sha256(BUSYBOX),
    }

    def build(folder: Path) -> None:
        program = folder / "guestload"
        source = str(_OWN / "guestload.c")
        subprocess.run(["gcc", *CFLAGS, "-s", f"-I{SOURCES}", "-o", str(program), source], check=True)
        (folder / "initrd.gz").write_bytes(gzip.compress(initial_root(program, _OWN / "init", kernel), 6, mtime=0))
        (folder / "vmlinuz").write_bytes(kernel.image.read_bytes())

    return lab_cache.entry("guest-load", material, build)
