# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes "newc" cpio archives, what the kernel unpacks as initial root. All entries belong to root."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class CpioArchive:
    """Collects entries in memory; ``data()`` is the archive, padded so that another may follow it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 1

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add folder ``path`` (relative, no leading slash) and the folders above it."""
        if path in self._folders or path in ("", "."):
            return
        self.folder(os.path.dirname(path))
        self._folders.add(path)
        self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(os.path.dirname(path))
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        self.folder(os.path.dirname(path))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, path: str, source: Path) -> None:
        """Add the file ``source`` with its permission bits."""
        self.file(path, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))

    def data(self) -> bytes:
        trailer = CpioArchive()
        trailer._entry("TRAILER!!!", 0, b"")
        whole = b"".join(self._parts + trailer._parts)
        return whole + bytes(-len(whole) % 512)

    def _entry(self, path: str, mode: int, data: bytes) -> None:
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
        self._inode += 1
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._parts.append(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
