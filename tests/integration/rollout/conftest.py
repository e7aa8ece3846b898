# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the real plays, roles and actions over hosts that are JSON files (see scripted/module_utils/scripted_host.py)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTED = Path(__file__).resolve().parent / "scripted"
CORE_OLD, CORE_NEW = "kvm-6.12.94-aaaaaaaaaaaaaaaa", "kvm-6.12.95-bbbbbbbbbbbbbbbb"
OLD, NEW = "qemu-10.2.2-0000000000000000", "qemu-11.1.1-1111111111111111"
_REAL_PLUGINS = ("action", "callback", "filter", "plugin_utils", "doc_fragments")
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Finished:
    """A run of ansible-playbook that ended."""

    exit_status: int
    output: str


class TerminalRun:
    """A run whose output is a terminal of 110 columns."""

    def __init__(self, argv: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        self._process = subprocess.Popen(argv, cwd=cwd, env=environment, stdout=theirs, stderr=theirs, process_group=0)
        os.close(theirs)
        self.pid = self._process.pid
        self._output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def returncode(self) -> int:
        """The exit status."""
        return self._process.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return what was written to the terminal when the run is over. Its workers are, too, or they keep it open."""
        self._process.wait(timeout)
        self._reader.join(timeout)
        return self._output.decode(), None

    def _read(self) -> None:
        try:
            while chunk := os.read(self._terminal, 65536):
                self._output += chunk
        except OSError as exc:
            assert exc.errno == errno.EIO, exc  # how a terminal tells that nobody writes to it any more
        os.close(self._terminal)


class Fleet:
    """A controller's working directory (``place``), an inventory, and scripted hosts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root
        self.inventory: dict[str, dict[str, Any]] = {}
        self.state = root / "state"
        _link_collection(root / "collections" / "ansible_collections" / "vmm" / "live_upgrade")

    def add_host(self, name: str, vms: dict[str, dict[str, Any]] | None = None, **variables: Any) -> None:
        """Add a host with VMs (name → overrides of its defaults)."""
        state_dir = self.root / "hosts" / name
        state_dir.mkdir(parents=True)
        chosen = {"vm1": {}} if vms is None else vms
        data = {
            "vms": {vm: {"build": OLD, "downtime_ms": 5.0, **extra} for vm, extra in chosen.items()},
            "default": OLD,
        }
        (state_dir / "host.json").write_text(json.dumps(data))
        self.inventory[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "upgrade_state_dir": str(state_dir),
            "vm_probes": {"host": {"command": [str(state_dir)]}},
            **variables,
        }

    def add_thin_host(self, name: str, vms: dict[str, dict[str, Any]] | None = None, **variables: Any) -> None:
        """Add a host whose VMs run on the KVM core ``CORE_OLD``, unless they say otherwise."""
        chosen = {"vm1": {}} if vms is None else vms
        self.add_host(name, {vm: {"kvm": CORE_OLD, **extra} for vm, extra in chosen.items()}, **variables)
        self.set(name, cores={CORE_OLD: True})

    def host(self, name: str) -> dict[str, Any]:
        """Return what a host's file says now."""
        return dict(json.loads((self.root / "hosts" / name / "host.json").read_text()))

    def change(self, name: str, vm: str, **values: Any) -> None:
        """Change a VM of a host; a value of None takes the key away."""
        path = self.root / "hosts" / name / "host.json"
        data = json.loads(path.read_text())
        data["vms"][vm].update(values)
        data["vms"][vm] = {key: value for key, value in data["vms"][vm].items() if value is not None}
        path.write_text(json.dumps(data))

    def set(self, name: str, **values: Any) -> None:
        """Change a host; a value of None takes the key away."""
        path = self.root / "hosts" / name / "host.json"
        data = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    def builds(self, name: str) -> dict[str, str]:
        """Return the build of each VM of a host."""
        return {vm: data["build"] for vm, data in self.host(name)["vms"].items()}

    def cores(self, name: str) -> tuple[dict[str, str], dict[str, bool]]:
        """Return the core of each VM of a host, and the cores that are loaded with whether each is the default."""
        host = self.host(name)
        return {vm: data["kvm"] for vm, data in host["vms"].items()}, host["cores"]

    def report(self, name: str = "upgrade.json") -> dict[str, Any]:
        """Return a report."""
        return dict(json.loads((self.place / "build" / "results" / name).read_text()))

    def status(self, name: str = "upgrade.status.json") -> dict[str, Any]:
        """Return how the last run says that the rollout stands, held against its schema."""
        status: dict[str, Any] = self.report(name)
        jsonschema.validate(status, json.loads((REPOSITORY / "docs" / "status.schema.json").read_text()))
        return status

    def move_on(self, name: str) -> None:
        """Go on in a working copy of its own, on another machine: with nothing but the results of the last one."""
        before, self.place = self.place, self.root / name
        shutil.copytree(before / "build", self.place / "build")
        self.state = self.root / f"state of {name}"

    def locks(self) -> list[Path]:
        """Return the locks of rollouts that lie around."""
        return sorted(self.state.rglob("*.json"))

    def start(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        """Start ansible-playbook in a process group of its own."""
        return subprocess.Popen(
            self._command(playbook, arguments, variables),
            cwd=self.place,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def start_on_terminal(
        self, playbook: str, *, environment: dict[str, str] | None = None, **variables: Any
    ) -> TerminalRun:
        """Start ansible-playbook with a terminal as its output."""
        values = {**self._environment(), "TERM": "xterm", "LC_ALL": "C.UTF-8", **(environment or {})}
        values.pop("COLUMNS", None)
        return TerminalRun(self._command(playbook, (), variables), self.root, values)

    def journal(self) -> list[dict[str, Any]]:
        """Return the events of the last rollout."""
        path = max((self.place / "build" / "results" / "rollouts").glob("*.jsonl"))
        return [json.loads(line) for line in path.read_text().splitlines()]

    def _command(self, playbook: str, arguments: Sequence[str], variables: dict[str, Any]) -> list[str]:
        inventory = self.root / "inventory.json"
        inventory.write_text(json.dumps({"hypervisors": {"hosts": self.inventory}}))
        return [
            str(Path(sys.executable).with_name("ansible-playbook")),
            f"vmm.live_upgrade.{playbook}",
            "-i",
            str(inventory),
            "-e",
            json.dumps(variables),
            *arguments,
        ]

    def _environment(self) -> dict[str, str]:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": str(self.root / "collections"),
            "ANSIBLE_CALLBACKS_ENABLED": "vmm.live_upgrade.progress",
            "ANSIBLE_HOME": str(self.root / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "XDG_STATE_HOME": str(self.state),
        }
        environment.pop("PYTHONPATH", None)
        return environment

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Finished:
        """Run ansible-playbook to its end."""
        return self.wait(self.start(playbook, *arguments, **variables))

    def upgrade(self, *arguments: str, **variables: Any) -> Finished:
        """Run the upgrade to ``NEW``."""
        return self.run("upgrade", *arguments, **{"upgrade_build": NEW, **variables})

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a run with all that it started. Ansible's workers have sessions of their own."""
        os.killpg(process.pid, signal.SIGKILL)
        self.kill_strays()
        process.communicate()

    def kill_strays(self) -> None:
        """Kill what a run has left."""
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.fsencode(f"{self.root}/") in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def wait(self, process: subprocess.Popen[str] | TerminalRun) -> Finished:
        """Wait for the end of a run."""
        try:
            output, _none = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return Finished(process.returncode, output)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Yield an empty fleet. What a run that was killed has left is ended here."""
    made = Fleet(tmp_path)
    yield made
    made.kill_strays()
    for fifo in (path for path in tmp_path.iterdir() if path.is_fifo()):
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # a module that such a worker left waits for a writer
        except OSError as exc:
            assert exc.errno == errno.ENXIO, exc  # nobody waits


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Yield a loopback port that refuses connections: bound, so that nobody else takes it, and not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def _link_collection(target: Path) -> None:
    """The real collection, but for the modules and the connection that stand in for hosts."""
    plugins = target / "plugins"
    plugins.mkdir(parents=True)
    for name in _REAL_PLUGINS:
        if (REPOSITORY / "plugins" / name).is_dir():
            (plugins / name).symlink_to(REPOSITORY / "plugins" / name)
    for name in ("roles", "playbooks", "meta", "extensions", "galaxy.yml"):
        if (REPOSITORY / name).exists():
            (target / name).symlink_to(REPOSITORY / name)
    for name in ("modules", "connection"):
        (plugins / name).symlink_to(SCRIPTED / name)
    # What is shared by both sides is the real thing.
    (plugins / "module_utils").mkdir()
    for source in (*(REPOSITORY / "plugins" / "module_utils").iterdir(), *(SCRIPTED / "module_utils").iterdir()):
        (plugins / "module_utils" / source.name).symlink_to(source)
