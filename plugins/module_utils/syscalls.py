# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux system calls that Python's standard library of our oldest hosts does not offer. PRIVATE to the collection."""

from __future__ import annotations

import ctypes
import os

_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_PIDFD_GETFD = 438
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Return a close-on-exec duplicate of descriptor ``target_fd`` of the process. Raises ``OSError``."""
    return _checked(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, target_fd, 0))


def pidfd_send_signal(pidfd: int, signal_number: int) -> None:
    """Send a signal to the very process the pidfd names, never to a later one of that pid. Raises ``OSError``."""
    _checked(_libc.syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signal_number, None, 0))


def setns(namespace_fd: int) -> None:
    """Enter the namespace behind a ``/proc/PID/ns/*`` descriptor. Raises ``OSError``."""
    _checked(_libc.setns(namespace_fd, 0))


def set_no_new_privs() -> None:
    """Set the ``no_new_privs`` attribute of the calling thread. Raises ``OSError``."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
