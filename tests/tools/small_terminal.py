# SPDX-License-Identifier: GPL-3.0-or-later
"""What a terminal shows after it was sent a text: as much of one as the progress view needs."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class SmallTerminal:
    """Knows cursor up, erase below, colours, carriage return and new line. Raises ``ValueError`` for all else."""

    def __init__(self, text: str = "") -> None:
        self._rows: list[str] = [""]
        self._row = self._column = 0
        self.feed(text)

    def feed(self, text: str) -> None:
        """Show ``text``."""
        place = 0
        while place < len(text):
            piece = _PIECE.match(text, place)
            if piece is None:
                raise ValueError(f"not known to this terminal: {text[place:place + 12]!r}")
            place = piece.end()
            number, letter, control, plain = piece.groups()
            if plain:
                self._put(plain)
            elif control == "\r":
                self._column = 0
            elif control:
                self._row, self._column = self._row + 1, 0
                self._rows += [""] * (self._row + 1 - len(self._rows))
            elif letter == "A":
                self._row = max(self._row - int(number or 1), 0)
            elif letter == "J" and number in ("", "0"):
                self._rows[self._row] = self._rows[self._row][: self._column]
                del self._rows[self._row + 1 :]
            elif letter != "m":
                raise ValueError(f"not known to this terminal: {piece[0]!r}")

    def lines(self) -> list[str]:
        """Return the rows that are not blank, without the blanks at their ends."""
        return [row.rstrip() for row in self._rows if row.strip()]

    def _put(self, text: str) -> None:
        row = self._rows[self._row].ljust(self._column)
        self._rows[self._row] = row[: self._column] + text + row[self._column + len(text) :]
        self._column += len(text)
