# SPDX-License-Identifier: GPL-3.0-or-later
"""The QMP client against a scripted monitor on a real UNIX socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import (
    QmpBusyError,
    QmpClient,
    QmpCommandError,
    QmpDeadError,
    QmpError,
    QmpTimeoutError,
)

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}
Script = Callable[[Callable[[Any], None], Callable[[], Any]], None]


class Monitor:
    """Serves one client by a script that gets ``say`` and ``hear``."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._thread: threading.Thread | None = None

    def serve(self, script: Script) -> None:
        def run() -> None:
            connection, _address = self._listener.accept()
            with connection, connection.makefile("rwb") as stream:

                def say(message: Any) -> None:
                    stream.write(json.dumps(message).encode() + b"\n" if not isinstance(message, bytes) else message)
                    stream.flush()

                def hear() -> Any:
                    return json.loads(stream.readline() or b"null")

                script(say, hear)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        if self._thread:
            self._thread.join(5)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    served = Monitor(tmp_path / "qmp.sock")
    yield served
    served.close()


def _greet(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
    say(GREETING)
    say({"return": {}, "id": hear()["id"]})


def test_answers_and_events_are_told_apart(monitor: Monitor) -> None:
    def script(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        _greet(say, hear)
        request = hear()
        say({"event": "STOP", "timestamp": {"seconds": 3, "microseconds": 4}})
        say({"return": {"status": "running"}, "id": request["id"]})
        hear()

    monitor.serve(script)
    with QmpClient.connect(monitor.path) as client:
        assert client.execute("query-status") == {"status": "running"}
        event = client.wait_event({"STOP"}, 1)
    assert (event.name, event.timestamp_us) == ("STOP", 3_000_004)


def test_event_for_the_client_before_is_not_taken_for_the_greeting(monitor: Monitor) -> None:
    def script(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        say({"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}})
        _greet(say, hear)
        say({"return": "ours", "id": hear()["id"]})
        hear()  # until the client has gone

    monitor.serve(script)
    with QmpClient.connect(monitor.path) as client:
        assert client.execute("query-ours") == "ours"
        assert client.drain_events() == []


def test_refused_command_keeps_its_class_and_words(monitor: Monitor) -> None:
    def script(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        _greet(say, hear)
        say({"error": {"class": "GenericError", "desc": "no"}, "id": hear()["id"]})

    monitor.serve(script)
    with QmpClient.connect(monitor.path) as client, pytest.raises(QmpCommandError, match="refused cont: no") as caught:
        client.execute("cont")
    assert caught.value.error_class == "GenericError"


def test_late_answer_is_not_taken_for_the_next_one(monitor: Monitor) -> None:
    def script(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        _greet(say, hear)
        first = hear()
        second = hear()
        say({"return": "late", "id": first["id"]})
        say({"return": "right", "id": second["id"]})
        hear()

    monitor.serve(script)
    with QmpClient.connect(monitor.path) as client:
        with pytest.raises(QmpTimeoutError):
            client.execute("slow", timeout_s=0.05)
        assert client.execute("quick") == "right"


def test_ungreeted_client_learns_that_the_monitor_is_busy(monitor: Monitor) -> None:
    with pytest.raises(QmpBusyError, match="another client holds this monitor"):
        QmpClient.connect(monitor.path, timeout_s=0.1)


def test_socket_nobody_serves_is_dead(tmp_path: Path) -> None:
    with pytest.raises(QmpDeadError, match="No such file"):
        QmpClient.connect(str(tmp_path / "none.sock"))


def test_peer_that_closes_is_dead(monitor: Monitor) -> None:
    monitor.serve(_greet)
    with QmpClient.connect(monitor.path) as client, pytest.raises(QmpDeadError, match="QEMU closed the connection"):
        client.execute("query-status", timeout_s=1)


@pytest.mark.parametrize(
    ("sent_before", "use"),
    [
        pytest.param(b"", QmpClient.drain_events, id="end-of-file"),
        pytest.param(b"unread", QmpClient.drain_events, id="reset"),
        pytest.param(b"", lambda client: client.execute("query-status"), id="broken-pipe"),
    ],
)
def test_closed_connection_is_told_alike_however_it_shows(sent_before: bytes, use: Callable[[QmpClient], Any]) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(sent_before)
    theirs.close()
    with QmpClient(ours, "vm1", timeout_s=1) as client:
        with pytest.raises(QmpDeadError, match="^vm1: QEMU closed the connection$"):
            use(client)


@pytest.mark.parametrize("words", [b"SSH-2.0-x\n", b'["list"]\n', b'{"hello": 1}\n'], ids=["text", "list", "object"])
def test_other_protocols_are_no_qmp(monitor: Monitor, words: bytes) -> None:
    monitor.serve(lambda say, hear: say(words))
    with pytest.raises(QmpError, match="not a QMP"):
        QmpClient.connect(monitor.path, timeout_s=1)


def test_attach_sends_the_negotiation_ahead(monitor: Monitor) -> None:
    client = QmpClient.attach(monitor.path)

    def script(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        say(GREETING)
        say({"return": {}, "id": hear()["id"]})
        say({"return": "up", "id": hear()["id"]})
        hear()

    monitor.serve(script)
    with client:
        assert client.execute("query-status") == "up"


def test_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as short:
        short.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(deep / "qmp.sock")
        short.listen(1)
        with pytest.raises(QmpBusyError):
            QmpClient.connect(str(deep / "qmp.sock"), timeout_s=0.1)
