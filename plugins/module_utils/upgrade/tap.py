# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a tap usable for the old QEMU when an upgrade is taken back.

A new QEMU that opens a tap's queue resets its header size and offloads, which belong to the device and not to the
descriptor: the old QEMU would go on reading frames of another shape. PRIVATE to the collection.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_TUNGETVNETHDRSZ = 0x800454D7
_TUNSETVNETHDRSZ = 0x400454D8
_INT = struct.Struct("i")


class TapState:
    """The header size of each tap among some descriptors, as it was when this object was made."""

    def __init__(self, descriptors: list[int]) -> None:
        """Read the state of the taps in ``descriptors``; other kinds of descriptors are passed over."""
        self._header_bytes: dict[int, int] = {}
        for fd in descriptors:
            try:
                self._header_bytes[fd] = _INT.unpack(fcntl.ioctl(fd, _TUNGETVNETHDRSZ, _INT.pack(0)))[0]
            except OSError as exc:
                if exc.errno not in (errno.ENOTTY, errno.EBADFD, errno.EINVAL, errno.EOPNOTSUPP):
                    raise

    def restore(self) -> None:
        """Give every tap the state it had. Raises ``OSError``."""
        for fd, header_bytes in self._header_bytes.items():
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(header_bytes))

    def close(self) -> None:
        """Close the descriptors of the taps."""
        for fd in self._header_bytes:
            os.close(fd)
