# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest says of its devices, in a page of its RAM, read through the memfd (guest/status.h)."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from dataclasses import astuple, dataclass
from pathlib import Path

STATUS_PAGE = 0x8000000
MAGIC = 0x564D4D4C56464901
SLOTS = 16
_HEADER = struct.Struct("<8Q")
_SLOT = struct.Struct("<8Q")
_GO = 4 * 8


@dataclass(frozen=True)
class Counts:
    """What one device has done so far."""

    ios: int
    io_errors: int
    mismatches: int
    lost_interrupts: int
    extra_interrupts: int

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(before))))


class Status:
    """The page of a guest whose RAM process ``pid`` holds; it stays readable when that process ends."""

    def __init__(self, pid: int) -> None:
        path = _ram(pid)
        with open(path, "r+b") as ram:
            self._page = mmap.mmap(ram.fileno(), 4096, mmap.MAP_SHARED, offset=STATUS_PAGE)
        # Of its own: a file that is held open outlives the process that it is looked up in.
        self._watch = subprocess.Popen(
            ["gapwatch", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.gaps_ms()

    def up(self) -> bool:
        return int(_HEADER.unpack_from(self._page)[0]) == MAGIC

    def ticks(self) -> int:
        return int(_HEADER.unpack_from(self._page)[1])

    def complaints(self) -> int:
        return int(_HEADER.unpack_from(self._page)[3])

    def go(self) -> None:
        """Have the guest bring the interfaces up that are to be late."""
        struct.pack_into("<Q", self._page, _GO, 1)

    def counts(self, slot: int) -> Counts:
        return Counts(*_SLOT.unpack_from(self._page, _HEADER.size + slot * _SLOT.size)[:5])

    def gaps_ms(self) -> tuple[float, list[float]]:
        """The longest time without a tick, and for each slot that without I/O, since this was asked last."""
        assert self._watch.stdin and self._watch.stdout
        self._watch.stdin.write("\n")
        self._watch.stdin.flush()
        ticks, *slots = (int(word) / 1000 for word in self._watch.stdout.readline().split())
        return ticks, slots

    def close(self) -> None:
        self._page.close()
        assert self._watch.stdin
        self._watch.stdin.close()
        self._watch.wait()


def _ram(pid: int) -> Path:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "memory-backend-memfd" in os.readlink(link):
            return link
    raise RuntimeError(f"process {pid} holds no RAM of a guest")
