# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices that are passed through. Also runs on the emulated host: Python's standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The first device's number on the root bus, of the emulated host and of the VM.
FIRST_ADDRESS = 0x10
# All network devices are on one hub, with a network device that stays the host's.
HUB = "hubport,hubid=0"
SUBNET = "10.0.{}.{}"


@dataclass(frozen=True)
class Device:
    """One device of the emulated host.

    ``slot``: where the guest counts what it does (guest/status.h); also gives the address. ``emulated``: its arguments in the
    emulator, with ``{name}``, ``{address}``, ``{number}`` and ``{disk}`` to be filled in. ``place``: which function is passed
    through: ``itself``, what is ``behind`` the root port at its address, or the ``virtual`` function of that.
    ``function``: its number in a slot that it shares, with its IOMMU group, with the devices before it, on the host.
    ``load``: ``disk``, ``net`` or ``edu``. ``log_name``: what the guest's kernel calls it.
    """

    name: str
    slot: int
    emulated: tuple[str, ...]
    load: str
    place: str = "itself"
    log_name: str = ""
    depth: int = 0
    msi: bool = True
    function: int = 0

    @property
    def address(self) -> int:
        """Its number on the root bus of the VM."""
        return FIRST_ADDRESS + self.slot

    @property
    def _host_address(self) -> str:
        return f"{self.address - self.function:02x}.{self.function}"

    def emulated_arguments(self, disks: Path) -> list[str]:
        """Its part of the emulator's command line; ``disks`` is a folder for images."""
        disk = disks / f"{self.name}.img"
        words = {"name": self.name, "address": f"0x{self._host_address}", "number": self.address, "disk": disk}
        return [argument.format(**words) for argument in self.emulated]

    def host_address(self, devices: Path = Path("/sys/bus/pci/devices")) -> str:
        """The PCI address of what is passed through, on the host."""
        own = devices / f"0000:00:{self._host_address}"
        if self.place == "itself":
            return own.name
        function = next(path for path in own.resolve().iterdir() if path.name.endswith(":00.0") and path.is_dir())
        return function.name if self.place == "behind" else (function / "virtfn0").resolve().name

    def job(self, late: bool = False) -> str:
        """What the guest is told of it (guest/init)."""
        kind = "late" if late else self.load
        return f"{kind}:{self.slot}:{self.address:02x}:{self.log_name or '-'}:{self.depth or int(self.msi)}"


def _network(model: str) -> tuple[str, ...]:
    return (
        *("-netdev", f"{HUB},id=net-{{name}}"),
        *("-device", f"{model},netdev=net-{{name}},romfile=,addr={{address}}"),
    )


def _network_behind(model: str) -> tuple[str, ...]:
    return (
        *("-device", "pcie-root-port,id=port-{name},addr={address},chassis={number}"),
        *("-netdev", f"{HUB},id=net-{{name}}"),
        *("-device", f"{model},netdev=net-{{name}},romfile=,bus=port-{{name}}"),
    )


_DRIVE = ("-drive", "if=none,id=drive-{name},file={disk},format=raw,cache=unsafe")

DEVICES = (
    Device(
        "nvme",
        0,
        (*_DRIVE, "-device", "nvme,drive=drive-nvme,serial=vfio,addr={address}"),
        "disk",
        log_name="nvme0",
        depth=8,
    ),
    Device("e1000e", 1, _network("e1000e"), "net"),
    Device("igb", 2, _network_behind("igb"), "net", "behind"),
    Device("igb-vf", 3, _network_behind("igb"), "net", "virtual"),
    Device(
        "xhci",
        4,
        (
            *("-device", "qemu-xhci,id=xhci,addr={address}", *_DRIVE),
            *("-device", "usb-storage,drive=drive-xhci,bus=xhci.0"),
        ),
        "disk",
        log_name="usb",
        depth=2,
    ),
    Device("virtio-net", 5, _network("virtio-net-pci,iommu_platform=on,disable-legacy=on"), "net"),
    Device("edu", 6, ("-device", "edu,addr={address},multifunction=on"), "edu"),
    Device("edu-intx", 7, ("-device", "edu,addr={address}"), "edu", msi=False, function=1),
)
BY_NAME = {device.name: device for device in DEVICES}
