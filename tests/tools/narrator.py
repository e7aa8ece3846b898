# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands one after another and says all along what goes on, with the time since the start."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

QUIET_S = 20.0
END_GRACE_S = 120.0


class CommandFailedError(Exception):
    """A command ended with another status than 0."""


class Narrator:
    """Prints lines that begin with the seconds since the start, and runs commands whose output it shows so."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self._environment = environment
        self._cwd = cwd
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """Print ``text``."""
        for line in text.splitlines() or [""]:
            print(f"[{self.elapsed_s:7.1f}s] {line}", flush=True)

    def chapter(self, title: str) -> None:
        """Print a heading."""
        self.say()
        self.say(f"=== {title}")

    def run(
        self,
        *command: str | Path,
        doing: str,
        hint: Callable[[], str] | None = None,
        result_to: Path | None = None,
    ) -> str:
        """Run ``command`` in a session of its own, show its output and return it.

        With ``result_to`` its standard output goes to that file, and only its standard error is shown. When it is silent
        for a while, say that it is still ``doing``, with what ``hint`` tells. An interrupt ends the command and comes
        through. Raises ``CommandFailedError``.
        """
        argv = [str(part) for part in command]
        with open(result_to or os.devnull, "w") as result:
            process = subprocess.Popen(
                argv,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=result if result_to else subprocess.PIPE,
                stderr=subprocess.PIPE if result_to else subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        shown = process.stderr or process.stdout
        assert shown is not None
        try:
            output = self._show(shown, doing, hint)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        if code:
            raise CommandFailedError(f"{doing}: failed with status {code}: {' '.join(argv)}")
        return output

    def _show(self, stream: IO[str], doing: str, hint: Callable[[], str] | None) -> str:
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        began = time.monotonic()
        seen: list[str] = []
        while True:
            try:
                line = lines.get(timeout=QUIET_S)
            except queue.Empty:
                told = hint() if hint else ""
                self.say(f"... {doing}, for {time.monotonic() - began:.0f} s now{f': {told}' if told else ''}")
                continue
            if line is None:
                return "".join(seen)
            seen.append(line)
            self.say(f"  {line.rstrip()}")


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and its children; it gets time to clean up after itself."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def last_line(path: Path) -> str:
    """Return the last line of a file that somebody writes, shortened; nothing when there is none."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            lines = stream.read().decode(errors="replace").strip().splitlines()
            return lines[-1].strip()[:120] if lines else ""
    except OSError:
        return ""
