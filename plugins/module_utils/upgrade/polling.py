# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at something again and again in a process of its own, while the one that wants to know does its work.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import select
import traceback
from typing import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

# Waits for so many seconds, and tells whether to stop.
Stopped = Callable[[float], bool]


class PollingChild:
    """A child process that looks until it is told to stop, or until its maker has gone."""

    def __init__(self, what: str, look: Callable[[Stopped], bytes]) -> None:
        """Start ``look(stopped)`` in a child; it is to return what it saw once ``stopped(seconds)`` is true.

        ``what`` names the child in errors. It has all our descriptors open until its end.
        """
        self._what = what
        stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._result_read, result_write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._stop_write)
            os.close(self._result_read)
            _run(look, stop_read, result_write)
        os.close(stop_read)
        os.close(result_write)

    def stop(self) -> bytes:
        """Tell it to stop, reap it, and return what it saw. Raises ``LiveUpgradeError`` when it had failed."""
        try:
            # A child that was made after this one has the pipe too, so that closing it would not be heard.
            os.write(self._stop_write, b".")
        except BrokenPipeError:
            pass  # it has ended
        os.close(self._stop_write)
        with os.fdopen(self._result_read, "rb") as stream:
            seen = stream.read()
        _pid, status = os.waitpid(self._pid, 0)
        if status:
            raise LiveUpgradeError(f"{self._what} ended without a result")
        return seen


def _run(look: Callable[[Stopped], bytes], stop_fd: int, result_fd: int) -> None:
    """The child's life. Never returns."""
    status = 1
    try:
        seen = look(lambda wait_s: bool(select.select([stop_fd], [], [], wait_s)[0]))
        with os.fdopen(result_fd, "wb") as stream:
            stream.write(seen)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
