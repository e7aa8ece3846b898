# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab is doing, with the time since it began; and the one exception that ends it with a message."""

from __future__ import annotations

import sys
import threading
import time


class LabError(Exception):
    """A failure worded for the person at the terminal: what happened, and what to do next."""


class Progress:
    """Prints lines like ``[ 12.3s] h1: ssh answers``; safe to use from several threads."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            sys.stderr.write(f"[{self.elapsed_s():6.1f}s] {text}\n")
            sys.stderr.flush()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_s
