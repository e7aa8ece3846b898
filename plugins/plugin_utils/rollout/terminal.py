# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A block of lines that stays at the end of a terminal while others write to it. PRIVATE to the collection."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

_TICK_S = 1.0
_ERASE_BELOW = "\x1b[J"


class StatusBlock:
    """Erases its lines before anything else is written to ``streams`` and draws them again after it.

    ``lines`` returns what to draw, and is asked again only after ``least_s``: others may write a lot. ``lock`` is held while
    it is drawn: given that under which this program forks, no fork finds it taken. A child of a fork writes past the block: it
    would not know what is drawn.
    """

    def __init__(
        self,
        streams: list[TextIO],
        lock: AbstractContextManager[Any],
        lines: Callable[[], list[str]],
        least_s: float = 0.2,
    ) -> None:
        self._streams = streams
        self._writes = [stream.write for stream in streams]
        self._lock = lock
        self._lines = lines
        self._least_s = least_s
        self._known: list[str] = []
        self._known_since_s = float("-inf")
        self._drawn = 0
        self._mid_line = False
        self._owner = os.getpid()
        self._over = threading.Event()
        for index, stream in enumerate(streams):
            stream.write = self._around(index)  # type: ignore[method-assign]
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()

    def refresh(self) -> None:
        """Draw it as things are now."""
        with self._lock:
            if not self._over.is_set() and not self._mid_line:
                self._draw()

    def close(self) -> None:
        """Erase it and leave the streams as they were. Once is enough."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            self._erase()
            for stream, write in zip(self._streams, self._writes):
                stream.write = write  # type: ignore[method-assign]
        self._ticker.join()

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            self.refresh()

    def _around(self, index: int) -> Callable[[str], int]:
        write, stream = self._writes[index], self._streams[index]

        def write_above(text: str) -> int:
            if os.getpid() != self._owner:
                return write(text)
            with self._lock:
                self._erase()
                written = write(text)
                stream.flush()
                self._mid_line = not text.endswith("\n") if text else self._mid_line
                if not self._mid_line and not self._over.is_set():
                    self._draw()
                return written

        return write_above

    def _erase(self) -> None:
        if self._drawn:
            self._writes[0](f"\x1b[{self._drawn}A\r{_ERASE_BELOW}")
            self._streams[0].flush()
            self._drawn = 0

    def _draw(self) -> None:
        now_s = time.monotonic()
        if now_s - self._known_since_s >= self._least_s:
            self._known, self._known_since_s = self._lines(), now_s
        self._erase()
        self._writes[0]("".join(f"{line}\n" for line in self._known))
        self._streams[0].flush()
        self._drawn = len(self._known)
