# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups that deny one device, of each version that this machine has (as root)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SYS_BPF = 321  # x86-64
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ATTRIBUTE_BYTES = 128
_V2 = [path for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(path, "cgroup.controllers").exists()]
_V1 = [path for path in ("/sys/fs/cgroup/devices",) if Path(path, "devices.deny").exists()]
HIERARCHIES = [*_V2, *_V1]


@contextmanager
def group_denying(hierarchy: str, major: int, minor: int) -> Iterator[Path]:
    """Make a group whose processes may not open the character device, as systemd's DevicePolicy would."""
    group = Path(hierarchy) / f"vmm-{os.getpid()}"
    group.mkdir()
    try:
        if hierarchy in _V2:
            _attach_policy(group, major, minor)
        else:
            (group / "devices.deny").write_text(f"c {major}:{minor} rw")
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def _attach_policy(group: Path, major: int, minor: int) -> None:
    """The policy of version 2 is a program: it is given the kind of access, major and minor, and returns 1 to allow."""
    program = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0x61, 0x12, 4, 0),  # r2 = major
            (0x55, 0x02, 4, major),  # if r2 != major: allow
            (0x61, 0x12, 8, 0),  # r2 = minor
            (0x55, 0x02, 2, minor),  # if r2 != minor: allow
            (0xB7, 0x00, 0, 0),  # deny: r0 = 0
            (0x95, 0x00, 0, 0),  # exit
            (0xB7, 0x00, 0, 1),  # allow: r0 = 1
            (0x95, 0x00, 0, 0),  # exit
        )
    )
    words = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(words), ctypes.addressof(license_)
    policy = _bpf(_PROG_LOAD, struct.pack("<IIQQ", _TYPE_CGROUP_DEVICE, len(program) // 8, *addresses))
    directory = os.open(group, os.O_RDONLY)
    try:
        _bpf(_PROG_ATTACH, struct.pack("<IIII", directory, policy, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(directory)
        os.close(policy)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTE_BYTES, b"\0"), _ATTRIBUTE_BYTES)
    result = int(ctypes.CDLL(None, use_errno=True).syscall(_SYS_BPF, command, buffer, _ATTRIBUTE_BYTES))
    assert result >= 0, f"bpf({command}): {os.strerror(ctypes.get_errno())}"
    return result
