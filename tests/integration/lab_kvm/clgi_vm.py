# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM on a lab host whose guest is ``clgi_firmware.S``, and what it counts, read in its RAM from outside."""

from __future__ import annotations

import base64
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import STATE_DIR, LabHosts

_SOURCE = Path(__file__).with_name("clgi_firmware.S")
_FIRMWARE = "/var/lib/vmm-lab/clgi.bin"
_LIMIT_S = 120.0
_COUNTERS, _MARK = 0x8000, 0x9000
_RAM_MIB = 16

# Says "absent" as long as QEMU has not made its RAM.
_LOOK = """\
import os, struct, sys
pid = {pid}
folder = f"/proc/{{pid}}/fd/"
def is_ram(path):
    return "memfd:" in os.readlink(path) and os.stat(path).st_size == {ram_bytes}
path = next((folder + fd for fd in os.listdir(folder) if is_ram(folder + fd)), None)
if path is None:
    sys.exit(print("absent"))
fd = os.open(path, os.O_RDWR)
if {mark!r}:
    os.pwrite(fd, {mark!r}, {mark_at})
print(*struct.unpack("<3Q", os.pread(fd, 24, {counters_at})), os.pread(fd, 16, {mark_at}).hex())
"""


@dataclass(frozen=True)
class Counted:
    """What the guest has counted so far: CLGI that was carried out, and that was #UD. ``mark``: what was written to its RAM."""

    rounds: int
    executed: int
    undefined: int
    mark: str


class ClgiVm:
    """The VM ``name`` on ``host``, a unit like those of the lab's own VMs."""

    def __init__(self, lab: LabHosts, host: str, name: str) -> None:
        self.name = name
        self.probes: dict[str, Any] = {name: {"ram_word": {"backend": "ram0", "offset": _COUNTERS}}}
        self._lab = lab
        self._host = host
        self._unit = f"vmm-lab-vm@{name}.service"

    def start(self, folder: Path) -> None:
        """Start it, and return when the guest counts. ``folder`` is for what is made here."""
        firmware = base64.b64encode(_assemble(folder)).decode()
        arguments = "\n".join(self._argv())
        self._lab.sh(
            self._host,
            f"base64 -d > {_FIRMWARE} <<'END'\n{firmware}\nEND\n"
            f"cat > /etc/vmm-lab/{self.name}.args <<'END'\n{arguments}\nEND\nsystemctl start {self._unit}\n",
        )
        end_s = time.monotonic() + _LIMIT_S
        while not self.look().rounds:
            assert time.monotonic() < end_s, "the guest does not count"
            time.sleep(1)

    def stop(self) -> None:
        """End it, and take away what was made on the host."""
        self._lab.sh(self._host, f"systemctl stop {self._unit}; rm -f {_FIRMWARE} /etc/vmm-lab/{self.name}.args")

    def look(self, mark: bytes = b"") -> Counted:
        """Read the counters, once ``mark`` of 16 bytes has been written elsewhere in its RAM."""
        script = _LOOK.format(pid=self.pid(), ram_bytes=_RAM_MIB << 20, mark=mark, mark_at=_MARK, counters_at=_COUNTERS)
        said = self._lab.sh(self._host, f"python3 - <<'END'\n{script}END\n").split()
        if said == ["absent"]:
            return Counted(0, 0, 0, "")
        rounds, executed, undefined, found = said
        return Counted(int(rounds), int(executed), int(undefined), found)

    def pid(self) -> int:
        """The process that runs it."""
        return int(self._lab.sh(self._host, f"pgrep -f -- '-name guest={self.name}[,]'"))

    def _argv(self) -> list[str]:
        return [
            f"{STATE_DIR}/builds/default/bin/qemu-system-x86_64",
            *("-name", f"guest={self.name},debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "pc-q35-10.2,memory-backend=ram0,aux-ram-share=on", "-accel", "kvm", "-cpu", "host"),
            *("-m", f"{_RAM_MIB}M", "-bios", _FIRMWARE),
            *("-object", f"memory-backend-memfd,id=ram0,size={_RAM_MIB}M,share=on"),
            *("-qmp", f"unix:/run/vmm-lab/{self.name}/qmp.sock,server=on,wait=off"),
        ]


def _assemble(folder: Path) -> bytes:
    made, image = folder / "clgi.o", folder / "clgi.bin"
    subprocess.run(["gcc", "-c", "-m32", str(_SOURCE), "-o", str(made)], check=True)
    link = ["ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0", "-e", "0", str(made), "-o", str(image)]
    subprocess.run(link, check=True)
    return image.read_bytes()
