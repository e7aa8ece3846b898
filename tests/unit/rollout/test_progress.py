# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a rollout is, from its journal, and the lines that stay at the end of a terminal."""

from __future__ import annotations

import datetime
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from rollout_story import VMS, journal
from small_terminal import SmallTerminal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.progress import JournalTail, Progress, drawn
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.terminal import StatusBlock


def at(event: dict[str, Any]) -> float:
    """Return when an event was."""
    return datetime.datetime.fromisoformat(event["at"]).timestamp()


def after(count: int, forks: int = 50) -> tuple[Progress, float]:
    """Return the progress after the first ``count`` events of the story, and the time."""
    events = journal()[:count]
    progress = Progress(events[0], forks)
    for event in events[1:]:
        progress.add(event)
    return progress, at(events[-1])


def index_of(kind: str, number: int = 0) -> int:
    """Return how many events it takes to come to the ``number``th one of a kind, itself included."""
    return [index for index, event in enumerate(journal()) if event["event"] == kind][number] + 1


class TestProgress:
    """What is told when."""

    def test_before_anything(self) -> None:
        progress, now = after(1)

        assert progress.line(now) == (
            "progress: wave 0 (of 0 to 4); hosts: 0 of 40 had their turn; VMs: 0 on the build; pauses: none measured yet; "
            "time: 0 s so far, the first wave tells how long it takes"
        )

    def test_in_the_middle_of_the_canary(self) -> None:
        progress, now = after(index_of("vm", 4))

        assert progress.running() == ["hv-a01", "hv-b01"]
        assert progress.vms_of("hv-a01") + progress.vms_of("hv-b01") == 5
        assert (progress.count("done"), progress.left_s(now)) == (0, None)
        assert "VMs: 5 on the build; pauses: median" in progress.line(now)

    def test_the_time_to_go_follows_from_the_last_wave(self) -> None:
        """Waves of a few hosts that run side by side take about as long as one; those of more than forks take more."""
        count = index_of("gate", 0)
        side_by_side, now = after(count)
        in_turns, _now = after(count, forks=2)

        canary_s = at(journal()[count - 1]) - at(journal()[1])
        assert side_by_side.left_s(now) == pytest.approx(canary_s * 4)
        assert in_turns.left_s(now) == pytest.approx(canary_s * (3 + 6 + 6 + 4))
        started, later = after(count + 21)
        assert 0 < (started.left_s(later + 5) or 0) < (started.left_s(later) or 0)

    def test_a_failed_wave_goes_back(self) -> None:
        judged, now = after(index_of("gate", 3))
        assert (judged.left_s(now), judged.wave) == (None, 3)
        assert judged.line(now).endswith(", stopping")

        back, _now = after(len(journal()))
        assert (back.count("back"), back.count("waiting"), len(back.undone)) == (12, 8, 73)
        assert back.told_vms() == "125 on the build, 2 rolled back, 73 back"
        assert len(back.pauses_ms) == VMS

    def test_another_run_goes_on_with_a_time_of_its_own(self) -> None:
        """Also after a wave that waited for somebody, which is judged anew and tells nothing of how long waves take."""
        count = index_of("gate", 0)
        progress, now = after(count)
        left_s = progress.left_s(now)
        gate = journal()[count - 1]
        paused = {**gate, "gate": {**gate["gate"], "verdict": "INCONCLUSIVE", "then": "pause"}}
        progress.add(paused)
        assert (progress.stopped, progress.left_s(now)) == (True, None)

        days_later = datetime.datetime.fromtimestamp(now + 200_000, datetime.timezone.utc).isoformat()
        progress.add({"event": "resume", "at": days_later})
        progress.add({**gate, "at": days_later})

        assert progress.left_s(now + 200_010) == left_s
        assert "10 s so far" in progress.line(now + 200_010)

    @pytest.mark.parametrize(
        ("then", "stopped"), [("stop", True), ("pause", True), (None, True), ("go_on", False), ("grow", False)]
    )
    def test_a_wave_that_proves_nothing_may_go_on_where_the_gate_was_asked_to(
        self, then: str | None, stopped: bool
    ) -> None:
        progress, now = after(index_of("gate", 0) - 1)

        gate = {"verdict": "INCONCLUSIVE", "then": then}
        progress.add({"event": "gate", "wave": 0, "gate": gate, "at": journal()[index_of("gate", 0) - 1]["at"]})

        assert (progress.stopped, progress.left_s(now) is None) == (stopped, stopped)

    def test_a_vm_of_a_host_whose_turn_is_over_is_on_the_way_back(self) -> None:
        progress, _now = after(index_of("gate", 3))
        pauses = dict(progress.pauses_ms)

        progress.add({"event": "vm", "host": "hv-a06", "name": "vm", "outcome": "upgraded", "downtime_ms": 900.0})

        assert (progress.running(), progress.vms_of("hv-a06"), progress.pauses_ms) == (["hv-a06"], 1, pauses)

    @pytest.mark.parametrize("width", [40, 79, 200])
    @pytest.mark.parametrize("unicode", [True, False])
    def test_it_is_drawn_within_the_terminal(self, width: int, unicode: bool) -> None:
        for count in (1, index_of("started", 10), index_of("gate", 3), len(journal())):
            progress, now = after(count)
            lines = [text for text, _colour in drawn(progress, now, width, unicode)]

            assert len(lines) == 7
            assert all(len(line) <= width for line in lines)
            assert unicode or all(line.isascii() for line in lines)

    def test_many_waves_and_hosts_are_told_in_short(self) -> None:
        begin = {**journal()[0], "waves": [[f"h{wave}-{host}" for host in range(20)] for wave in range(60)]}
        progress = Progress(begin, 50)
        for host in begin["waves"][0]:
            progress.add({"event": "started", "at": begin["at"], "host": host, "wave": 0})

        lines = [text for text, _colour in drawn(progress, at(begin), 79, unicode=True)]

        assert lines[1] == " waves  0 of 60 passed, ▶ 0 (20 hosts)"
        assert lines[6].startswith(" now    h0-0 0 VMs, ") and lines[6].endswith(" more")

    def test_vms_that_came_to_their_end_are_counted_while_their_host_is_at_work(self) -> None:
        begin = {**journal()[0], "waves": [["h1"]]}
        progress = Progress(begin, 5)
        progress.add({"event": "started", "at": begin["at"], "host": "h1", "wave": 0})
        for name in ("vm1", "vm2"):
            progress.add({"event": "vm", "at": begin["at"], "host": "h1", "name": name, "outcome": "upgraded"})

        lines = [text for text, _colour in drawn(progress, at(begin), 79, unicode=True)]

        assert lines[6] == " now    h1 2 VMs"


class TestTail:
    """Reading while others write."""

    def test_half_a_line_waits_and_a_torn_one_is_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        path.write_text('{"event": "a"}\n{"eve')
        tail = JournalTail(path)

        assert [event["event"] for event in tail.new_events()] == ["a"]
        assert tail.new_events() == []
        with path.open("a") as stream:
            stream.write('\n{"event": "b"}\n')
        assert [event["event"] for event in tail.new_events()] == ["b"]
        assert tail.new_events() == []

    def test_a_line_that_comes_in_two_parts_is_one(self, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        whole = json.dumps({"event": "long", "text": "ü" * 100}, ensure_ascii=False).encode() + b"\n"
        path.write_bytes(whole[:57])
        tail = JournalTail(path)

        assert tail.new_events() == []
        path.write_bytes(whole)
        assert [event["event"] for event in tail.new_events()] == ["long"]


class _Stream(io.StringIO):
    """A stream whose write can be replaced, as that of a terminal can."""


class TestBlock:
    """Lines that stay where they are."""

    def test_others_write_above_it_and_nothing_is_left_of_it(self) -> None:
        stream = _Stream()
        numbers = iter(range(100))
        block = StatusBlock([stream], threading.RLock(), lambda: [f"count {next(numbers)}", "second"], least_s=0)
        block.refresh()
        assert SmallTerminal(stream.getvalue()).lines() == ["count 0", "second"]

        stream.write("TASK one\n")
        stream.write("ok: ")
        assert SmallTerminal(stream.getvalue()).lines() == ["TASK one", "ok:"]
        block.refresh()
        stream.write("[h1]\n")
        shown = SmallTerminal(stream.getvalue()).lines()
        assert (shown[:2], shown[2].split()[0], shown[3:]) == (["TASK one", "ok: [h1]"], "count", ["second"])

        block.close()
        block.close()
        stream.write("PLAY RECAP\n")
        assert SmallTerminal(stream.getvalue()).lines() == ["TASK one", "ok: [h1]", "PLAY RECAP"]

    def test_it_may_shrink(self) -> None:
        stream = _Stream()
        heights = iter([3, 1, 2])
        block = StatusBlock([stream], threading.RLock(), lambda: ["line"] * next(heights, 1), least_s=0)
        for _turn in range(3):
            block.refresh()

        assert SmallTerminal(stream.getvalue()).lines() == ["line"] * 2
        block.close()
        assert SmallTerminal(stream.getvalue()).lines() == []

    def test_much_that_is_written_does_not_ask_for_it_each_time(self) -> None:
        stream, asked = _Stream(), []
        block = StatusBlock([stream], threading.RLock(), lambda: asked.append(1) or ["line"], least_s=3600)  # type: ignore
        for number in range(100):
            stream.write(f"{number}\n")

        assert (len(asked), SmallTerminal(stream.getvalue()).lines()[-2:]) == (1, ["99", "line"])
        block.close()

    def test_a_child_writes_past_it(self) -> None:
        stream = _Stream()
        block = StatusBlock([stream], threading.RLock(), lambda: ["line"])
        block.refresh()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            before = len(stream.getvalue())
            stream.write("x\n")
            os.write(writing, stream.getvalue()[before:].encode())
            os._exit(0)
        os.waitpid(child, 0)

        assert os.read(reading, 100) == b"x\n"
        block.close()
        for descriptor in (reading, writing):
            os.close(descriptor)
