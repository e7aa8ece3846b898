# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an executable says about itself, read from the smallest ELF files that say it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.elf import identify, read_gnu_build_id

IDENTIFIER = bytes(range(20))


def note(kind: int, name: bytes, value: bytes) -> bytes:
    pad = b"\0" * (-len(name) % 4)
    return struct.pack("<III", len(name), len(value), kind) + name + pad + value + b"\0" * (-len(value) % 4)


def elf(notes: bytes) -> bytes:
    """A 64-bit little-endian file of a header, one PT_LOAD, one PT_NOTE."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 0)
    notes_at = 64 + 2 * 56
    return header + load + struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(notes), len(notes), 4) + notes


@pytest.mark.parametrize(
    "content,expected",
    [
        pytest.param(elf(note(3, b"GNU\0", IDENTIFIER)), IDENTIFIER.hex(), id="only-note"),
        pytest.param(
            elf(note(1, b"GNU\0", bytes(16)) + note(3, b"GNU\0", IDENTIFIER)), IDENTIFIER.hex(), id="second-note"
        ),
        pytest.param(
            elf(note(5, b"stapsdt\0", b"x") + note(3, b"GNU\0", IDENTIFIER)), IDENTIFIER.hex(), id="after-padding"
        ),
        pytest.param(elf(note(3, b"Go\0\0", IDENTIFIER)), None, id="another-vendors-note"),
        pytest.param(elf(b""), None, id="no-note"),
        pytest.param(elf(note(3, b"GNU\0", IDENTIFIER))[:100], None, id="cut-short"),
        pytest.param(b"#!/bin/sh\n", None, id="script"),
        pytest.param(b"", None, id="empty"),
    ],
)
def test_gnu_build_id(content: bytes, expected: str | None) -> None:
    assert read_gnu_build_id(io.BytesIO(content)) == expected


@pytest.mark.parametrize(
    "content,build_id,is_qemu",
    [
        pytest.param(
            b"..vmm.live_upgrade build qemu-11.1.1-0123456789abcdef)..", "qemu-11.1.1-0123456789abcdef", True, id="ours"
        ),
        pytest.param(
            b"vmm.live_upgrade build %s vmm.live_upgrade build qemu-10.2.2-0123456789abcdef",
            "qemu-10.2.2-0123456789abcdef",
            True,
            id="after-a-format-string",
        ),
        pytest.param(b"vmm.live_upgrade build qemu-11.1.1-0123", None, False, id="too-short"),
        pytest.param(b"QEMU emulator version 8.2", None, True, id="foreign-qemu"),
        pytest.param(b"bash", None, False, id="something-else"),
        pytest.param(b"", None, False, id="empty"),
    ],
)
def test_identity(tmp_path: Path, content: bytes, build_id: str | None, is_qemu: bool) -> None:
    path = tmp_path / "binary"
    path.write_bytes(content)

    identity = identify(str(path))

    assert (identity.build_id, identity.is_qemu) == (build_id, is_qemu)
