# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives the devices to vfio-pci, and starts the peer of those that are for a network."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from vfiolab.devices import SUBNET, Device

# Where the host's own network device is on the root bus.
OWN_ADDRESS = "0000:00:08.0"
_PCI = Path("/sys/bus/pci")
# From linux/iommufd.h: size, option, operation, reserved, object, value
_OPTION, _IOMMU_OPTION = "=IIHHIQ", 0x3B87
_RLIMIT_MODE, _SET = 0, 0


def say(text: str) -> None:
    """For people, on the console."""
    print(f"[{time.clock_gettime(time.CLOCK_BOOTTIME):12.6f}] host: {text}", file=sys.stderr, flush=True)


def bind_all(devices: Iterable[Device]) -> dict[str, str]:
    """Give all to vfio-pci. Returns device name → PCI address."""
    addresses = {}
    virtual = []
    for device in devices:
        if device.place == "virtual":
            virtual.append(device)
        else:
            addresses[device.name] = bind(device)
    for module in sorted(Path("/later").iterdir()):
        subprocess.run(["insmod", str(module)], check=True)
    for device in virtual:
        _make_virtual(device)
        addresses[device.name] = bind(device)
    return addresses


def bind(device: Device) -> str:
    """Give one to vfio-pci. Returns its PCI address."""
    address = device.host_address()
    folder = _PCI / "devices" / address
    (folder / "driver_override").write_text("vfio-pci")
    if (folder / "driver").exists():
        (folder / "driver" / "unbind").write_text(address)
    (_PCI / "drivers_probe").write_text(address)
    driver = (folder / "driver").resolve().name
    if driver != "vfio-pci":
        raise RuntimeError(f"{device.name} ({address}) has driver {driver}, not vfio-pci")
    say(f"{device.name}: {address}, IOMMU group {(folder / 'iommu_group').resolve().name}")
    return address


def open_device(address: str, number: int) -> int:
    """Open a device of vfio-pci as what iommufd takes, under ``number``, which is returned. The next program does not inherit it
    but by being told to.
    """
    name = next((_PCI / "devices" / address / "vfio-dev").iterdir()).name
    opened = os.open(f"/dev/vfio/devices/{name}", os.O_RDWR)
    os.dup2(opened, number, inheritable=False)
    os.close(opened)
    return number


def open_iommufd(number: int) -> int:
    """Open an iommufd that counts what is pinned for the process, not for its user, under ``number``, which is returned."""
    opened = os.open("/dev/iommu", os.O_RDWR)
    size = struct.calcsize(_OPTION)
    fcntl.ioctl(opened, _IOMMU_OPTION, struct.pack(_OPTION, size, _RLIMIT_MODE, _SET, 0, 0, 1))
    os.dup2(opened, number, inheritable=False)
    os.close(opened)
    return number


def _make_virtual(device: Device) -> None:
    own = (_PCI / "devices" / f"0000:00:{device.address:02x}.0").resolve()
    function = next(path for path in own.iterdir() if path.name.endswith(":00.0") and path.is_dir())
    subprocess.run(["ip", "link", "set", network_name(function.name), "up"], check=True)
    (_PCI / "drivers_autoprobe").write_text("0")
    (function / "sriov_numvfs").write_text("1")
    (_PCI / "drivers_autoprobe").write_text("1")


def network_name(address: str) -> str:
    """The network interface of the PCI device at ``address``."""
    for path in Path("/sys/class/net").iterdir():
        if f"/{address}/" in str(path.resolve()):
            return path.name
    raise RuntimeError(f"PCI device {address} has no network interface")


def start_peer(devices: Iterable[Device]) -> None:
    """Answer pings and TCP streams of all devices, from a process of its own."""
    addresses = [f"{SUBNET.format(device.slot, 1)}/24" for device in devices if device.load == "net"]
    if not addresses:
        return
    own = network_name(OWN_ADDRESS)
    subprocess.run(["ip", "link", "set", own, "up"], check=True)
    for address in addresses:
        subprocess.run(["ip", "addr", "add", address, "dev", own], check=True)
    listener = socket.create_server(("0.0.0.0", 7))
    if os.fork() == 0:
        try:
            _serve(listener)
        finally:
            os._exit(1)
    listener.close()


def _serve(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_echo, args=(client,), daemon=True).start()


def _echo(client: socket.socket) -> None:
    with client:
        try:
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            return  # the guest sees its stream break, and counts it
