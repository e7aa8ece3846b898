# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real QEMU whose guest says through the pvpanic device that it crashed, as soon as a byte in its RAM says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory

_ORDER_OFFSET = 0x9000
_FIRMWARE_BYTES = 1 << 16
_GUEST = bytes.fromhex(
    "fa"  # cli
    "31c0"  # xor   %ax,%ax
    "8ed8"  # mov   %ax,%ds
    "668306008001"  # next: addl $1,0x8000
    "668316048000"  # adcl  $0,0x8004
    "a00090"  # mov   0x9000,%al
    "84c0"  # test  %al,%al
    "74ed"  # jz    next
    "ba0505"  # mov   $0x505,%dx     pvpanic's port
    "ee"  # out   %al,%dx
    "c606009000"  # movb  $0,0x9000
    "ebe2"  # jmp   next
)
_RESET_VECTOR = bytes.fromhex("ea000000f0")  # ljmp $0xf000,$0


class PanickingVm:
    """Has a monitor to spare. It runs on after it crashed, so that only the event tells."""

    def __init__(self, start_qemu: QemuFactory, folder: Path, name: str = "vm1") -> None:
        firmware = folder / f"{name}.bin"
        firmware.write_bytes(_GUEST.ljust(_FIRMWARE_BYTES - 16, b"\0") + _RESET_VECTOR.ljust(16, b"\0"))
        self._spare = str(folder / f"{name}.spare")
        more = ["-bios", str(firmware), "-device", "pvpanic", "-action", "panic=none"]
        self.qemu: LocalQemu = start_qemu(
            name, guest=None, extra=[*more, "-qmp", f"unix:{self._spare},server=on,wait=off"]
        )
        self.qemu.wait_counting()

    def panic(self) -> None:
        """Have the guest crash."""
        for link in Path(f"/proc/{self.qemu.pid}/fd").iterdir():
            if "memory-backend-memfd" in os.readlink(link):
                with link.open("r+b", buffering=0) as ram:
                    os.pwrite(ram.fileno(), b"\x01", _ORDER_OFFSET)
                return
        raise AssertionError("its RAM was not found")

    def monitors(self) -> list[dict[str, Any]]:
        """Return what a look at it tells of its monitors."""
        return [{"path": path, "state": "ok", "on_host": True} for path in (self.qemu.qmp_path, self._spare)]
