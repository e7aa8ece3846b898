# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a page in Debian's headless Chromium and asks it things, by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = "chromium-headless-shell"
_TIMEOUT_S = 60


class BrowserError(Exception):
    """The browser is not there, or refused."""


class Browser:
    """A browser with one page. ``events`` holds what it told unasked: requests, console, errors."""

    def __init__(self) -> None:
        program = shutil.which(PROGRAM) or shutil.which("chromium")
        if program is None:
            raise BrowserError(f"{PROGRAM} is not installed; `make setup` installs it")
        self._profile = tempfile.TemporaryDirectory(prefix="vmm-browser-")
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        self._pid = _spawn(
            [
                *(program, "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
                *(f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            from_us,
            to_us,
        )
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        pages = [target for target in self.ask("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self._session = self.ask("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser with all its processes: one that lives a moment longer still writes into the profile."""
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        deadline = time.monotonic() + _TIMEOUT_S
        while _group_lives(self._pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._profile.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command. Raises ``BrowserError`` for one that is refused or that takes too long."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") != self._last_id:
                self.events.append(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            else:
                return dict(answer["result"])
        raise BrowserError(f"{method}: no answer")

    def show(self, page: Path, width: int = 1180, height: int = 900, scheme: str = "light") -> None:
        """Load a file and wait until it is drawn."""
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        for event in self._messages():
            self.events.append(event)
            if event.get("method") == "Page.loadEventFired":
                break

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; the page itself may be forbidden to run any."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, height: int) -> bytes:
        """Return the upper part of the page as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(height, size["height"]), "scale": 1}
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    def print(self) -> bytes:
        """Return the page as it prints, as PDF."""
        answer = self.ask(
            "Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69, printBackground=True
        )
        return base64.b64decode(answer["data"])

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            while b"\0" in self._buffer:
                message, _nul, self._buffer = self._buffer.partition(b"\0")
                yield json.loads(message)
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise BrowserError(f"{PROGRAM} ended")
            self._buffer += chunk


def _spawn(argv: list[str], reads: int, writes: int) -> int:
    """Start ``argv`` in a session of its own and return its pid. The protocol is spoken on its descriptors 3 and 4."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in (reads, writes)]
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    spoken = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[*silent, *spoken], setsid=True)
    for descriptor in (*high, reads, writes):
        os.close(descriptor)
    return pid


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def shown(page: Path, **how: Any) -> Iterator[Browser]:
    """Yield a browser that shows ``page``."""
    with Browser() as browser:
        browser.show(page, **how)
        yield browser
