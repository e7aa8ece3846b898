# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which memory of a VM is shared, judged by the kernel's own list of mappings. PRIVATE to the collection.

QEMU tells where each RAM block lies in its address space; ``/proc/PID/maps`` tells what lies there. That is what counts in a
hand-over, whatever the command line says. Without a monitor the command line and the mappings have to do.
"""

from __future__ import annotations

import bisect
import re

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse_keyval
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import RamBlock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import Answers
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import Mapping

# Block Name, PSize (two words), Offset, Used, Total, HVA (since 8.0), RO. Blocks without a name are never migrated.
_BLOCK_LINE = re.compile(
    r"^\s*(?P<name>\S+)\s+[\d.]+ \wi?B\s+0x[0-9a-f]+\s+0x[0-9a-f]+\s+0x(?P<total>[0-9a-f]+)(?:\s+0x(?P<address>[0-9a-f]+))?",
    re.M,
)
_DELETED = " (deleted)"
_UNITS = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_DEFAULT_SIZE = "128M"


def ram_blocks(options: list[Option], answers: Answers, mapped: list[Mapping]) -> list[RamBlock]:
    """Return the RAM blocks of a VM from what it said, else from its command line; ``mapped`` is its address space."""
    text = answers.mapping("ramblocks").get("human-readable-text")
    if not text:
        return _from_command_line(options, mapped)
    shares = {str(device.get("id")): bool(device.get("share")) for device in answers.listed("memdevs")}
    default = answers.text("memory_backend")
    found = []
    for match in _BLOCK_LINE.finditer(text):
        name, size_bytes = match["name"], int(match["total"], 16)
        bare = name.rpartition("/")[2] if name.startswith("/objects/") else name
        backend = bare in shares or bare == default
        if match["address"]:
            shared, backing = _look_up(mapped, int(match["address"], 16))
        else:
            shared, backing = shares.get(bare), "unknown"
        found.append(RamBlock(name, size_bytes, shared, backing, backend))
    return found


def parse_size(text: str) -> int:
    """Return the bytes of a QEMU size; without a suffix it counts MiB, as ``-m`` does. Raises ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([BKMGT]?)(?:i?B)?", text.strip(), re.I)
    if not match:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


def _look_up(mapped: list[Mapping], address: int) -> tuple[bool | None, str]:
    index = bisect.bisect_right([mapping.start for mapping in mapped], address) - 1
    if index < 0 or address >= mapped[index].end:
        return None, "unknown"
    return mapped[index].shared, _backing(mapped[index].path)


def _backing(path: str) -> str:
    bare = path[: -len(_DELETED)] if path.endswith(_DELETED) else path
    if bare.startswith("/memfd:"):
        return "memfd"
    if bare.startswith(("/dev/shm/", "/SYSV")):  # noqa: S108 - recognised, not written
        return "shm"
    if bare.startswith(("/dev/", "anon_inode:")):
        return f"device:{bare}"
    return f"file:{bare}" if bare.startswith("/") else "anonymous"


def _from_command_line(options: list[Option], mapped: list[Mapping]) -> list[RamBlock]:
    found = []
    for option in options:
        if option.name == "object" and option.value:
            fields = parse_keyval(option.value, "qom-type")
            kind = fields.get("qom-type", "")
            if kind.startswith("memory-backend-"):
                found.append(_backend_block(kind, fields, mapped))
    machine: dict[str, str] = {}
    for option in options:
        if option.name in ("machine", "M") and option.value:
            machine.update(parse_keyval(option.value, "type"))
    if "memory-backend" not in machine and not any(option.name == "numa" for option in options):
        sizes = [
            parse_keyval(option.value, "size").get("size") for option in options if option.name == "m" and option.value
        ]
        # Nobody named a backend, so QEMU allocated private memory, unless it is a file made shared by -mem-path.
        found.append(RamBlock("default", _size_or_zero(sizes[-1] if sizes else None), False, "anonymous", True))
    return found


def _backend_block(kind: str, fields: dict[str, str], mapped: list[Mapping]) -> RamBlock:
    size_bytes = _size_or_zero(fields.get("size"))
    shared_by_default = kind in ("memory-backend-memfd", "memory-backend-shm")
    claimed = fields.get("share", "on" if shared_by_default else "off") in ("on", "true", "yes")
    fitting = {
        (mapping.shared, _backing(mapping.path)) for mapping in mapped if mapping.end - mapping.start == size_bytes
    } & ({(claimed, "memfd"), (claimed, "shm")} | {(claimed, f"file:{fields.get('mem-path')}"), (False, "anonymous")})
    shared, backing = fitting.pop() if len(fitting) == 1 else (claimed, "unknown")
    return RamBlock(fields.get("id", ""), size_bytes, shared, backing, True)


def _size_or_zero(text: str | None) -> int:
    try:
        return parse_size(text or _DEFAULT_SIZE)
    except ValueError:
        return 0
