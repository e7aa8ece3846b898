# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A watcher under test, and what it wrote down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import KNOWN_ONLY, SshSettings
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import Watch, told
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher_control import WatcherControl
from ansible_collections.vmm.live_upgrade.tests.integration.watch.sshd import Sshd

_AWAIT_S = 600.0
_POLL_S = 0.05


class RunningWatcher:
    """Starts with the first call of ``start``."""

    def __init__(self, control: WatcherControl, owner: subprocess.Popen[bytes]) -> None:
        self.control = control
        self._owner = owner

    def start(self) -> int:
        """Start it and return its process."""
        self.control.start(self._owner.pid)
        return int(self.records("watching")[-1]["pid"])

    def watch(self, sshd: Sshd, monitors: dict[str, str], host: str = "h1", **settings: Any) -> None:
        """Have it watch VMs by way of ``sshd``."""
        assert self.control.watch(host, asdict(settings_for(sshd, **settings)), monitors)

    def records(self, event: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Return what it wrote down of a kind and with these fields."""
        wanted = {**({"event": event} if event else {}), **fields}
        return [
            record
            for record in self.control.log.events()
            if all(record.get(key) == value for key, value in wanted.items())
        ]

    def wait_for(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait until it wrote down ``count`` records of a kind, and return that one."""
        await_that(
            lambda: len(self.records(event, **fields)) >= count,
            lambda: f"no {event} {fields}: {self.control.log.events()}",
        )
        return self.records(event, **fields)[count - 1]

    def told(self) -> Watch:
        """Return what all that comes to."""
        return told(self.control.log.events())

    def kill_owner(self) -> None:
        """Kill the rollout."""
        self._owner.kill()
        self._owner.wait()

    def end(self) -> None:
        """End it, whatever state it is in. What it wrote down names it."""
        self.kill_owner()
        for record in self.records("watching"):
            if is_running(record["pid"]) and os.fsencode(self.control.log.path) in command_of(record["pid"]):
                os.kill(record["pid"], signal.SIGKILL)


def settings_for(sshd: Sshd, **changes: Any) -> SshSettings:
    """Return how to get in at ``sshd``."""
    values: dict[str, Any] = {
        "address": "127.0.0.1",
        "port": sshd.port,
        "user": sshd.user,
        "identity_files": [str(sshd.key)],
        "only_these_identities": True,
        "agent": "",
        "known_hosts": [str(sshd.known_hosts)],
        "host_keys": KNOWN_ONLY,
        "alias": "",
        "proxy_command": "",
        "password": "",
        "timeout_s": 5.0,
        **changes,
    }
    return SshSettings(**values)


def await_that(condition: Callable[[], bool], why: Callable[[], str]) -> None:
    """Poll: what another process does sends no event to a test."""
    deadline = time.monotonic() + _AWAIT_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(_POLL_S)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def command_of(pid: int) -> bytes:
    """Return the command of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
