# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QMP without a socket: what is taken for what, in whatever pieces it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.qmp_stream import QmpStream

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 1}, "package": ""}, "capabilities": ["oob"]}}
STOP = {"event": "STOP", "timestamp": {"seconds": 1700000000, "microseconds": 250000}}


def lines(*messages: Any) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


def negotiated() -> QmpStream:
    stream = QmpStream()
    stream.feed(lines(GREETING))
    stream.feed(lines({"return": {}, "id": "capabilities"}))
    stream.take_outgoing()
    return stream


def test_negotiates_once_greeted() -> None:
    stream = QmpStream()
    assert stream.take_outgoing() == b""

    stream.feed(lines(GREETING))

    assert json.loads(stream.take_outgoing()) == {"execute": "qmp_capabilities", "id": "capabilities"}
    assert (stream.version, stream.is_ready) == ("11.1.1", False)
    stream.feed(lines({"return": {}, "id": "capabilities"}))
    assert stream.is_ready


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_come_in_any_pieces(size: int) -> None:
    stream, data = negotiated(), lines(STOP, {"event": "RESUME"})

    events = [event for at in range(0, len(data), size) for event in stream.feed(data[at : at + size])]

    assert [(event.name, event.timestamp_us) for event in events] == [("STOP", 1_700_000_000_250_000), ("RESUME", 0)]


def test_events_before_the_greeting_are_anothers() -> None:
    stream = QmpStream()

    assert len(stream.feed(lines(STOP, GREETING, STOP))) == 1
    assert stream.version == "11.1.1"


def test_asks_for_the_run_state_one_question_at_a_time() -> None:
    stream = QmpStream()
    stream.ask_status()
    assert not stream.is_asked, "nobody is there yet"

    stream = negotiated()
    stream.ask_status()
    stream.ask_status()

    assert json.loads(stream.take_outgoing()) == {"execute": "query-status", "id": "status"}
    stream.feed(lines({"return": {"status": "running", "running": True}, "id": "status"}))
    assert (stream.status, stream.is_asked) == ("running", False)


def test_a_question_that_is_refused_is_answered_too() -> None:
    stream = negotiated()
    stream.ask_status()
    stream.feed(lines({"error": {"class": "CommandNotFound", "desc": "no"}, "id": "status"}))

    assert (stream.status, stream.is_asked) == (None, False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"SSH-2.0-OpenSSH\n", "not a QMP monitor", id="no-json"),
        pytest.param(b"[1]\n", "not a QMP message", id="no-object"),
        pytest.param(b'{"return": {}}\n', "not a QMP monitor", id="no-greeting"),
        pytest.param(b"x" * (1 << 20) + b"y", "more than a message", id="no-end"),
    ],
)
def test_refuses_what_is_not_qmp(data: bytes, why: str) -> None:
    with pytest.raises(QmpError, match=why):
        QmpStream().feed(data)


def test_refuses_a_qemu_that_refuses() -> None:
    stream = QmpStream()
    stream.feed(lines(GREETING))

    with pytest.raises(QmpError, match="refused the negotiation"):
        stream.feed(lines({"error": {"desc": "no"}, "id": "capabilities"}))
