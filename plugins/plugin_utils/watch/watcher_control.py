# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tasks of a rollout start its watcher, tell it what to watch, and end it.

The watcher is of help, and never in the way: what goes wrong with it is written down, and the rollout goes on.
PRIVATE to the collection.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.lock import lock_directory

_START_S = 60.0
_ANSWER_S = 20.0
_POLL_S = 0.05
_LAST_WORDS = 500
# Ansible's loader, told first where this very collection lies, finds it as it does for the tasks.
_PROGRAM = (
    "import sys; from ansible.plugins.loader import init_plugin_loader; init_plugin_loader([sys.argv.pop(1)]); "
    "from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher import main; main()"
)


def watch_file(journal: Path) -> Path:
    """Return where the watcher of the rollout with ``journal`` writes down what it sees: beside it."""
    return journal.with_suffix(".watch")


def why_impossible() -> str:
    """Return why nothing can be watched from this controller, empty when it can."""
    if not hasattr(os, "pidfd_open") or not hasattr(os, "eventfd"):
        return "the watcher needs Linux 5.3 or later on the controller"
    if importlib.util.find_spec("paramiko") is None:
        return f"the Python package paramiko is not there for {sys.executable}"
    return ""


class WatcherControl:
    """The way to the watcher of one rollout, whose journal is ``journal``. There may be none, or none any more."""

    def __init__(self, journal: Path) -> None:
        self.log = Journal(watch_file(journal))
        self._socket_name = f"{journal.stem}.watch"

    def start(self, owner_pid: int) -> None:
        """Start a watcher that ends with the process ``owner_pid``. Raises ``LiveUpgradeError`` saying why there is none."""
        owner_fd = os.pidfd_open(owner_pid)
        try:
            with _directory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                path = f"{folder}/{self._socket_name}"
                Path(path).unlink(missing_ok=True)
                listener.bind(path)
                listener.listen(socket.SOMAXCONN)
                self._start(listener, owner_fd)
        except OSError as exc:
            raise LiveUpgradeError(f"the watcher cannot be started: {exc}") from exc
        finally:
            os.close(owner_fd)

    def _start(self, listener: socket.socket, owner_fd: int) -> None:
        self.log.path.parent.mkdir(parents=True, exist_ok=True)
        # A pipe that nobody reads any more would end it, or block it.
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _PROGRAM, _collections_root()),
                    *(str(listener.fileno()), str(owner_fd), str(self.log.path)),
                    str(lock_directory() / self._socket_name),
                ],
                pass_fds=[listener.fileno(), owner_fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                cwd="/",
                # Ctrl-C is for Ansible, which then still reports; the watcher ends after it.
                start_new_session=True,
            )
            try:
                self._await_answer(process)
            except LiveUpgradeError as exc:
                process.kill()
                process.wait()
                words.seek(0)
                last = words.read().decode(errors="replace").strip()[-_LAST_WORDS:]
                raise LiveUpgradeError(f"the watcher does not start: {exc}{f': {last}' if last else ''}") from exc

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        """Its socket takes connections before it runs, so there is an answer or an end to wait for."""
        with self._connected(_POLL_S) as client:
            client.sendall(b'{"do": "hello"}\n')
            deadline = time.monotonic() + _START_S
            while True:
                try:
                    _answer(client)
                    return
                except socket.timeout:
                    if process.poll() is not None:
                        raise LiveUpgradeError(f"it ended with status {process.returncode}") from None
                    if time.monotonic() > deadline:
                        raise LiveUpgradeError(f"it did not answer within {_START_S:g} s") from None

    def is_there(self) -> bool:
        """Whether a watcher was started and not ended. It may be dead all the same."""
        return (lock_directory() / self._socket_name).exists()

    def watch(self, host: str, ssh: dict[str, Any] | None, monitors: dict[str, str]) -> bool:
        """Have a host watched, or more of its VMs: name → path of a monitor. Return whether there is a watcher."""
        return self._tell({"do": "watch", "host": host, "ssh": ssh, "monitors": monitors})

    def look(self, hosts: Sequence[str]) -> bool:
        """Have hosts and VMs asked how they are, so that all that happened until now is written down."""
        return self._tell({"do": "look", "hosts": list(hosts)})

    def leave(self, hosts: Sequence[str]) -> bool:
        """Watch these hosts no more."""
        return self._tell({"do": "leave", "hosts": list(hosts)})

    def end(self) -> None:
        """End the watcher, once it has written down everything."""
        self._tell({"do": "end"})
        with _directory() as folder:
            Path(f"{folder}/{self._socket_name}").unlink(missing_ok=True)

    def _tell(self, request: dict[str, Any]) -> bool:
        try:
            with self._connected(_ANSWER_S) as client:
                client.sendall(json.dumps(request).encode() + b"\n")
                answer = _answer(client)
        except (FileNotFoundError, ConnectionRefusedError):
            return False  # none was started, or it ended, which its file tells
        except (OSError, ValueError) as exc:
            self._put_down(f"asked to {request['do']}, it said nothing sensible: {exc or type(exc).__name__}")
            return False
        if "error" in answer:
            self.log.append("silent", reason=f"asked to {request['do']}, it said: {answer['error']}")
        return "error" not in answer

    def _put_down(self, reason: str) -> None:
        """End a watcher that does not answer, or every task of the rollout would wait for it.

        Only then is it written down: it may hold the lock of the file.
        """
        pid = next((event["pid"] for event in reversed(self.log.events()) if event["event"] == "watching"), None)
        if pid is not None:
            with suppress(ProcessLookupError, FileNotFoundError):
                pidfd = os.pidfd_open(pid)
                try:
                    if os.fsencode(self.log.path) in Path(f"/proc/{pid}/cmdline").read_bytes():
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        self.log.append("silent", reason=reason)

    @contextmanager
    def _connected(self, timeout_s: float) -> Iterator[socket.socket]:
        with _directory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(f"{folder}/{self._socket_name}")
            yield client


@contextmanager
def _directory() -> Iterator[str]:
    """Give a short name to the folder of this user's locks: a socket's path has to fit into a hundred bytes."""
    folder = lock_directory()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _answer(client: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = client.recv(65536)
        if not chunk:
            raise ConnectionResetError("it closed the connection without an answer")
        data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer


def _collections_root() -> str:
    """The folder that holds ``ansible_collections``, by the name under which this file was found."""
    return str(Path(__file__).absolute().parents[6])
