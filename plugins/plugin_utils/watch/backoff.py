# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long to wait before the next try. PRIVATE to the collection."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses that double from ``first_s`` to ``longest_s``, each shortened by up to a half.

    The chance in it keeps a thousand sessions that broke together from coming back together.
    """

    def __init__(self, first_s: float, longest_s: float, chance: Callable[[], float] = random.random) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self._next_s = first_s

    def pause_s(self) -> float:
        """Return how long to wait now."""
        pause_s = self._next_s
        self._next_s = min(self._next_s * 2, self._longest_s)
        return pause_s * (1 - self._chance() / 2)

    def reset(self) -> None:
        """It worked: begin anew."""
        self._next_s = self._first_s
