# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel can do with the DMA mappings of VFIO devices when a VM changes its process. PRIVATE to the collection."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# From linux/vfio.h and linux/iommufd.h
_CHECK_EXTENSION = 0x3B65
_UNMAP_ALL, _UPDATE_VADDR = 9, 10
_IOAS_MAP_FILE = 0x3B8F
_IOAS_CHANGE_PROCESS = 0x3B92
_IOMMU_OPTION, _RLIMIT_MODE, _OPTION_GET = 0x3B87, 0, 1
_OPTION = struct.Struct("=IIHHIQ")  # size, option, operation, reserved, object, value

Answer = Callable[[int], bool]


@dataclass(frozen=True)
class VfioKernel:
    """The abilities of this kernel; null is "there is no such interface", as where its module is not loaded.

    ``legacy_change_process``: mappings of a legacy container can be given another process. A container that is in use may still
    say no, as with a mediated device: ``vm.vfio_use`` asks it. ``iommufd_*``: the same with iommufd, which wants mappings that
    were made from files.
    """

    legacy_change_process: bool | None = None
    iommufd_change_process: bool | None = None
    iommufd_map_file: bool | None = None


def look_at_kernel(root: Path = Path("/")) -> VfioKernel:
    """Ask the kernel. Loads no module, and makes no container that outlives the question."""
    has_type1 = (root / "sys/module/vfio_iommu_type1").is_dir()
    return VfioKernel(
        _ask(root, "vfio/vfio", lambda fd: has_type1 and _is_as_new_as_change_of_vaddr(fd)),
        _ask(root, "iommu", iommufd_can_change_process),
        _ask(root, "iommu", lambda fd: _knows(fd, _IOAS_MAP_FILE)),
    )


def container_can_change_process(fd: int) -> bool:
    """Tell whether the mappings of a legacy container that is in use can be given another process. Raises ``OSError``."""
    return fcntl.ioctl(fd, _CHECK_EXTENSION, _UPDATE_VADDR) > 0 and fcntl.ioctl(fd, _CHECK_EXTENSION, _UNMAP_ALL) > 0


def iommufd_can_change_process(fd: int) -> bool:
    """Tell the same of an open ``/dev/iommu``, of which nothing is changed. Raises ``OSError``."""
    return _knows(fd, _IOAS_CHANGE_PROCESS)


def iommufd_counts_for_user(fd: int) -> bool:
    """Tell whether what an open ``/dev/iommu`` pins counts for the user; else it counts for the process. Raises ``OSError``."""
    option = bytearray(_OPTION.pack(_OPTION.size, _RLIMIT_MODE, _OPTION_GET, 0, 0, 0))
    fcntl.ioctl(fd, _IOMMU_OPTION, option)
    return not _OPTION.unpack(option)[-1]


def _is_as_new_as_change_of_vaddr(fd: int) -> bool:
    """A container that has no devices yet never has the extension itself; this one came to Linux with it."""
    return fcntl.ioctl(fd, _CHECK_EXTENSION, _UNMAP_ALL) > 0


def _knows(fd: int, request: int) -> bool:
    """The kernel looks up a request before it finds that the arguments, which say that their size is 0, are none."""
    try:
        fcntl.ioctl(fd, request, bytearray(8))
    except OSError as exc:
        if exc.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        return exc.errno == errno.EINVAL
    return True


def _ask(root: Path, node: str, question: Answer) -> bool | None:
    """Ask behind a node of ``/dev``; a node that is no device yet would have its module loaded, and is not opened."""
    if not (root / "sys/class/misc" / os.path.basename(node)).exists():
        return None
    try:
        fd = os.open(root / "dev" / node, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    return answer_of(fd, question)


def answer_of(fd: int, question: Answer) -> bool | None:
    """Put ``question`` to a descriptor and close it; None when it gives no answer."""
    try:
        return question(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
