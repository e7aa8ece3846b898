# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a QEMU that failed said last. PRIVATE to the collection."""

from __future__ import annotations

import os
import stat

_LINES = 2
_CHARS = 400
_BYTES = 4096


class LastWords:
    """Listens to what a process writes that has its standard error from process ``pid``, from now on."""

    def __init__(self, pid: int) -> None:
        """Remember where the log ends now, if standard error is a file. Raises nothing: it is about a hint only."""
        self._fd = -1
        self._start = 0
        self._where = "the VM's own log"
        path = f"/proc/{pid}/fd/2"
        try:
            self._where = os.readlink(path)
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._start = status.st_size
            elif self._where != os.devnull:
                self._where = "the VM's own log"  # a pipe or a socket, of which only the reader knows what came
        except OSError:
            pass  # where it goes can only be guessed

    def heard(self) -> str:
        """Return what was said, as the end of a sentence; or where it would be."""
        if self._fd < 0:
            return f" (its last words went to {self._where})"
        size = os.fstat(self._fd).st_size
        start = max(self._start, size - _BYTES)
        return last_lines(os.pread(self._fd, max(0, size - start), start).decode(errors="replace"))

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def last_lines(text: str) -> str:
    """Return the last lines of ``text`` as the end of a sentence; empty when there are none."""
    lines = text.strip().splitlines()
    return f", last words: {' | '.join(lines[-_LINES:])[-_CHARS:]}" if lines else ""
