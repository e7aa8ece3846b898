# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an executable says about itself: our build id and the linker's. Works on deleted files through ``/proc/PID/exe``.

PRIVATE to the collection.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

_MARKER = b"vmm.live_upgrade build "
_BUILD_ID = re.compile(rb"qemu-[0-9.]+-[0-9a-f]{16}")
_QEMU_TEXT = b"QEMU emulator version"
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_NOTE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class ExeIdentity:
    """``build_id`` is null for a binary that we did not build; ``is_qemu`` says that it is a QEMU system emulator."""

    build_id: str | None
    gnu_build_id: str | None
    is_qemu: bool


def identify(path: str) -> ExeIdentity:
    """Read the executable at ``path``. Raises ``OSError`` when it cannot be read."""
    with open(path, "rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # an empty file
            return ExeIdentity(None, None, False)
        with content:
            build_id = _find_build_id(content)
            is_qemu = build_id is not None or content.find(_QEMU_TEXT) >= 0
        return ExeIdentity(build_id, read_gnu_build_id(stream), is_qemu)


def read_gnu_build_id(stream: BinaryIO) -> str | None:
    """Return the hex of the ELF note ``NT_GNU_BUILD_ID``; null when the file is no ELF or has none."""
    try:
        return _scan_segments(stream)
    except (struct.error, OverflowError):
        return None  # cut short or damaged


def _find_build_id(content: mmap.mmap) -> str | None:
    position = content.find(_MARKER)
    while position >= 0:
        start = position + len(_MARKER)
        match = _BUILD_ID.match(content[start : start + 64])
        if match:
            return match.group().decode()
        position = content.find(_MARKER, start)
    return None


def _scan_segments(stream: BinaryIO) -> str | None:
    stream.seek(0)
    ident = stream.read(16)
    if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        return None
    is_64, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    header = struct.Struct(order + ("HHIQQQIHHHHHH" if is_64 else "HHIIIIIHHHHHH"))
    fields = header.unpack(stream.read(header.size))
    table_offset, entry_bytes, entries = fields[4], fields[8], fields[9]
    for index in range(entries):
        stream.seek(table_offset + index * entry_bytes)
        if is_64:
            kind, _flags, offset, _vaddr, _paddr, size = struct.unpack(order + "IIQQQQ", stream.read(40))
        else:
            kind, offset, _vaddr, _paddr, size = struct.unpack(order + "IIIII", stream.read(20))
        if kind == _PT_NOTE:
            stream.seek(offset)
            found = _scan_notes(stream.read(min(size, _NOTE_LIMIT_BYTES)), order)
            if found:
                return found
    return None


def _scan_notes(data: bytes, order: str) -> str | None:
    position = 0
    while position + 12 <= len(data):
        name_bytes, value_bytes, kind = struct.unpack_from(order + "III", data, position)
        name_at = position + 12
        value_at = name_at + _aligned(name_bytes)
        if kind == _NT_GNU_BUILD_ID and data[name_at : name_at + name_bytes] == b"GNU\0":
            return data[value_at : value_at + value_bytes].hex()
        position = value_at + _aligned(value_bytes)
    return None


def _aligned(size: int) -> int:
    return (size + 3) & ~3
