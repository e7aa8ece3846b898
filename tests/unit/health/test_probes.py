# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes against real sockets, programs and files of this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.health import probes, serial


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield a listening TCP socket."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


class TestNetwork:
    """Ping and TCP."""

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_loopback_answers_a_ping(self, address: str) -> None:
        answer = probes.ping(address, 5.0)

        assert answer.ok, answer.detail

    def test_nobody_answers_a_ping(self) -> None:
        assert not probes.ping("2001:db8::1", 0.3).ok

    def test_only_addresses_are_pinged(self) -> None:
        assert probes.ping("-c 1 example", 1.0).detail == "ping: '-c 1 example' is not an IP address"

    def test_a_port_accepts(self, listener: socket.socket) -> None:
        assert probes.tcp("127.0.0.1", listener.getsockname()[1], 5.0).ok

    def test_a_port_refuses(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            answer = probes.tcp("127.0.0.1", bound.getsockname()[1], 0.3)

        assert not answer.ok
        assert "refused" in answer.detail


class TestCommand:
    """The operator's own command."""

    def test_exit_status_decides(self) -> None:
        assert probes.command([sys.executable, "-c", ""], 30.0).ok
        failed = probes.command([sys.executable, "-c", "import sys; sys.exit('not well')"], 30.0)
        assert (failed.ok, failed.detail.endswith("exited with 1: not well")) == (False, True)

    def test_no_shell(self, tmp_path: Path) -> None:
        assert not probes.command([f"true; touch {tmp_path}/x"], 30.0).ok
        assert not list(tmp_path.iterdir())

    def test_it_ends_in_time(self) -> None:
        assert "did not end" in probes.command([sys.executable, "-c", "import time; time.sleep(60)"], 0.2).detail


class TestGuestAgent:
    """A guest agent played by a thread on a real socket."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        return str(tmp_path / "agent.sock")

    def serve(self, path: str, stale: bytes, ping_answer: bytes) -> threading.Thread:
        """Answer one client: the sync with its id, after ``stale`` bytes; the ping with ``ping_answer``."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()

        def answer() -> None:
            with server, server.accept()[0] as client, client.makefile("rb") as lines:
                sync = json.loads(lines.readline().lstrip(b"\xff"))
                client.sendall(stale + b"\xff" + json.dumps({"return": sync["arguments"]["id"]}).encode() + b"\n")
                assert json.loads(lines.readline())["execute"] == "guest-ping"
                client.sendall(ping_answer)

        thread = threading.Thread(target=answer)
        thread.start()
        return thread

    def test_answers_after_what_another_client_left(self, path: str) -> None:
        thread = self.serve(path, b'{"return": {"half', b'{"return": {}}\n')

        answer = probes.guest_agent(path, 5.0)

        thread.join()
        assert answer.ok, answer.detail

    def test_an_error_is_no_answer(self, path: str) -> None:
        thread = self.serve(path, b"", b'{"error": {"desc": "disabled"}}\n')

        answer = probes.guest_agent(path, 5.0)

        thread.join()
        assert (answer.ok, "disabled" in answer.detail) == (False, True)

    def test_a_silent_agent_costs_its_time_and_no_more(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()

            assert "timed out" in probes.guest_agent(path, 0.2).detail

    def test_no_agent(self, path: str) -> None:
        assert not probes.guest_agent(path, 0.2).ok


class TestSerialLog:
    """Only what was logged since."""

    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker:1]", "lockup"),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", "lockup"),
            ("rcu: INFO: rcu_sched detected stalls on CPUs/tasks", "lockup"),
            ("INFO: task jbd2/vda1 blocked for more than 120 seconds.", "lockup"),
            ("clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable", "clock"),
            ("systemd[1]: Time jumped backwards, rotating.", "clock"),
            ("Kernel panic - not syncing: Fatal exception", "crash"),
            ("BUG: unable to handle page fault for address", "crash"),
            ("blk_update_request: I/O error, dev vda, sector 8", "disk"),
            ("EXT4-fs error (device vda1): ext4_find_entry", "disk"),
        ],
    )
    def test_patterns(self, tmp_path: Path, line: str, kind: str) -> None:
        assert kind in self.complaints_after(tmp_path / "log", "", f"{line}\n")

    @pytest.mark.parametrize("line", ["clocksource: Switched to clocksource kvm-clock", "debug: lockups: 0", "login:"])
    def test_harmless_lines(self, tmp_path: Path, line: str) -> None:
        assert self.complaints_after(tmp_path / "log", "", f"{line}\n") == {}

    def test_the_documentation_tells_the_patterns(self) -> None:
        page = (Path(__file__).resolve().parents[3] / "docs" / "rollout.md").read_text(encoding="utf-8")
        for kind, pattern in serial.PATTERNS.items():
            escaped = pattern.replace("|", "\\|")
            assert f"| {kind} | `{escaped}` |" in page

    def test_what_was_logged_before_does_not_count(self, tmp_path: Path) -> None:
        assert self.complaints_after(tmp_path / "log", "Kernel panic\n", "login:\n") == {}

    def test_a_log_that_was_cut_is_read_anew(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("x" * 1000, encoding="utf-8")
        before = asdict(serial.position(str(log)))
        log.write_text("Kernel panic\nOops: 2\n", encoding="utf-8")

        (complaint,) = serial.complaints_since(before, serial.position(str(log)))

        assert complaint.message == "serial log: Kernel panic (and 1 more)"

    def test_what_is_no_file_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")

        with pytest.raises(LiveUpgradeError, match="not a regular file"):
            serial.position(str(tmp_path / "fifo"))
        with pytest.raises(LiveUpgradeError, match="No such file"):
            serial.position(str(tmp_path / "none"))

    def complaints_after(self, log: Path, before: str, after: str) -> dict[str, str]:
        """Return what is complained of when ``after`` is logged behind ``before``."""
        log.write_text(before, encoding="utf-8")
        position = asdict(serial.position(str(log)))
        with log.open("a", encoding="utf-8") as stream:
            stream.write(after)
        found = serial.complaints_since(position, serial.position(str(log)))
        return {problem.subject: problem.message for problem in found}
