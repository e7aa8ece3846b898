# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM of the lab: its names, addresses, command line, and where a health check can look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .image import BUILDS

STATUS_PAGE = 0x8000000
COUNTER_OFFSET = STATUS_PAGE + 8
MACHINE = "pc-q35-10.2"
# The status page lies at 128 MiB, so this is close to the least.
MEMORY_MIB = 160
GUEST = "/usr/local/lib/vmm-lab/guest"


@dataclass(frozen=True)
class Pace:
    """How fast a guest works: the periods of its counter and of its disk records. How long an upgrade may pause it."""

    tick_us: int
    record_ms: int
    pause_ms: int = 1000


# One tick is some five exits. In hardware that is nothing; under emulation an exit costs up to half a millisecond, and
# six guests share two cores with everything else. A pause is as long as the machine is busy.
PACES = {"kvm": Pace(1000, 50), "tcg": Pace(40000, 500, 20000)}


@dataclass(frozen=True)
class VmSpec:
    """VM number ``index`` (from 1) of host ``host``; its disk may be a drive of the host that is passed through."""

    host: str
    index: int
    pace: Pace
    passthrough: bool = False

    @property
    def name(self) -> str:
        return f"{self.host}-vm{self.index}"

    @property
    def unit(self) -> str:
        return f"vmm-lab-vm@{self.name}.service"

    @property
    def address(self) -> str:
        """On the host's own bridge; VMs of other hosts have the same."""
        return f"192.168.77.{10 + self.index}"

    @property
    def console(self) -> str:
        return f"/var/log/vmm-lab/{self.name}.console"

    @property
    def disk(self) -> str:
        return f"/var/lib/vmm-lab/{self.name}.raw"

    @property
    def drive_slot(self) -> int:
        """The place on the host's root bus of the drive that is passed through to it."""
        return 0x10 + self.index

    def argv(self) -> list[str]:
        """The whole command line, as a careful operator of today would write it."""
        mac = f"52:54:00:77:{int(self.host.removeprefix('h')):02x}:{self.index:02x}"
        kernel_arguments = (
            "console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable panic=1 net.ifnames=0 "
            # without lastbus the kernel asks all 256 buses who is there: 20,000 exits
            f"pci=lastbus=0 memmap=64K${STATUS_PAGE:#x} lab.ip={self.address} "
            f"lab.tick_us={self.pace.tick_us} lab.record_ms={self.pace.record_ms}"
        )
        return [
            f"/{BUILDS}/default/bin/qemu-system-x86_64",
            "-name", f"guest={self.name},debug-threads=on",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", f"{MACHINE},memory-backend=ram0,aux-ram-share=on,hpet=off",
            "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", f"{MEMORY_MIB}M",
            "-object", f"memory-backend-memfd,id=ram0,size={MEMORY_MIB}M,share=on",
            "-kernel", f"{GUEST}/vmlinuz", "-initrd", f"{GUEST}/initrd.gz", "-append", kernel_arguments,
            *self._disk_argv(),
            "-netdev", f"tap,id=net0,ifname=tap-{self.name},script=no,downscript=no,vhost=off",
            "-device", f"virtio-net-pci,id=nic0,netdev=net0,mac={mac},romfile=",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:/run/vmm-lab/{self.name}/qmp.sock,server=on,wait=off",
            "-qmp", f"unix:/run/vmm-lab/{self.name}/watch.sock,server=on,wait=off",
        ]  # fmt: skip

    def _disk_argv(self) -> list[str]:
        if self.passthrough:
            return ["-device", f"vfio-pci,host=0000:00:{self.drive_slot:02x}.0,id=drive0"]
        return [
            "-blockdev", f"driver=file,node-name=disk0-file,filename={self.disk},cache.direct=on,aio=threads",
            "-blockdev", "driver=raw,node-name=disk0,file=disk0-file,cache.direct=on",
            "-device", "virtio-blk-pci,id=vda,drive=disk0",
        ]  # fmt: skip

    def probes(self) -> dict[str, Any]:
        """The entry of inventory variable ``vm_probes``."""
        return {
            "ram_word": {"backend": "ram0", "offset": COUNTER_OFFSET},
            "ping": self.address,
            "tcp": {"host": self.address, "port": 7},
            "serial_log": self.console,
        }
