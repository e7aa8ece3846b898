# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated Intel host never waits for somebody to read its screen."""

from __future__ import annotations

import os
import pty
import threading
import tty

from kmodlab.intel import _drain

# far more than a terminal holds, and no end of a line in it
DRAWN = b"\x1b[?25h\x1b[1;1H" * 100_000


def test_what_is_drawn_is_read() -> None:
    terminal, bochs = pty.openpty()
    screen, shown = pty.openpty()
    tty.setraw(shown)  # as Bochs does: else what nobody reads is thrown away
    threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
    os.write(bochs, f'Bochs x86 Emulator 2.7\nBochs connected to screen "{os.ttyname(shown)}"\n'.encode())

    drawing = threading.Thread(target=_draw, args=(screen,), daemon=True)
    drawing.start()
    drawing.join(60)

    assert not drawing.is_alive(), "who draws stands still"
    for descriptor in (bochs, screen, shown):
        os.close(descriptor)


def _draw(screen: int) -> None:
    left = DRAWN
    while left:
        left = left[os.write(screen, left) :]
