# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a rollout stands in one word; VMs that are left out; runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import judge, left_out, loaded_cores
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import left_open
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import outputs_of, report_path
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import leave_out, verdicts_to_keep
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import (
    accepted_waves,
    is_finished,
    pause_of,
    undone_by,
    waiting_wave,
    waves_left,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import (
    NotApprovedError,
    refusal_told,
    status_of,
    status_path,
    write_status,
)

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs" / "status.schema.json").read_text(encoding="utf-8"))


def vm(outcome: str, back: str | None = None, wave: int = 0) -> dict[str, Any]:
    return {"name": "vm", "host": "h1", "wave": wave, "outcome": outcome, "rollback": back and {"outcome": back}}


def host(**values: Any) -> dict[str, Any]:
    return {"name": "h1", "wave": 0, "outcome": "failed", "rollback": None, "started": "t", "finished": "t", **values}


def wave(index: int, verdict: str, then: str | None, hard: str = "PASS") -> dict[str, Any]:
    checks = [{"check": "hard_stop", "verdict": hard}]
    return {"index": index, "gate": {"verdict": verdict, "then": then, "checks": checks}}


FAILED = wave(0, "FAIL", "stop")


@pytest.mark.parametrize(
    ("values", "status"),
    [
        pytest.param({"vms": [vm("upgraded", "upgraded"), vm("rolled_back")]}, "rolled_back", id="all-back"),
        pytest.param({"vms": [vm("rolled_back")]}, "rolled_back", id="taken-back-by-itself"),
        pytest.param({"vms": [vm("refused"), vm("not_attempted")]}, "stopped", id="nothing-moved"),
        pytest.param({"hosts": [host(outcome="unreachable")]}, "stopped", id="unreachable-from-the-start"),
        pytest.param({"vms": [vm("upgraded"), vm("rolled_back")]}, "attention", id="not-rolled-back"),
        pytest.param({"vms": [vm("upgraded", "failed")]}, "attention", id="the-way-back-failed"),
        pytest.param({"vms": [vm("failed")]}, "attention", id="state-unknown"),
        pytest.param({"vms": [vm("lost")]}, "attention", id="lost"),
        pytest.param({"hosts": [host(outcome="unreachable", finished=None)]}, "attention", id="vanished-in-its-turn"),
        pytest.param(
            {"vms": [vm("upgraded", "upgraded")], "hosts": [host(rollback="failed")]}, "attention", id="host-not-back"
        ),
        pytest.param(
            {"vms": [vm("upgraded", "upgraded")], "waves": [wave(0, "FAIL", "stop", hard="FAIL")]},
            "attention",
            id="a-guest-crashed-and-went-back",
        ),
        pytest.param(
            {
                "vms": [vm("upgraded", wave=0), vm("rolled_back", wave=1)],
                "waves": [wave(0, "PASS", "go_on"), FAILED | {"index": 1}],
            },
            "rolled_back",
            id="an-earlier-wave-stays",
        ),
        pytest.param(
            {
                "vms": [vm("upgraded", wave=0), vm("rolled_back", wave=1)],
                "waves": [wave(0, "INCONCLUSIVE", "grow"), FAILED | {"index": 1}],
            },
            "attention",
            id="a-wave-that-grew-is-part-of-it",
        ),
        pytest.param({"waves": [wave(0, "PASS", "go_on")]}, "attention", id="cores-not-settled"),
        pytest.param({"kind": "rollback"}, "attention", id="a-roll-back-failed"),
        pytest.param({"waves": [wave(0, "FAIL", None)]}, "stopped", id="journal-of-an-older-version"),
        pytest.param({"verdict": "ok"}, "done", id="done"),
        pytest.param({"verdict": "aborted"}, "interrupted", id="interrupted"),
        pytest.param({"verdict": "ok", "mode": "plan"}, "planned", id="planned"),
        pytest.param({"mode": "plan"}, "stopped", id="plan-refused"),
    ],
)
def test_the_status_of_a_run_that_ended(values: dict[str, Any], status: str) -> None:
    report = {"kind": "upgrade", "mode": "apply", "verdict": "failed", "waves": [FAILED], "hosts": [], "vms": []}
    assert status_of({**report, **values}, None) == status


@pytest.mark.parametrize(("waits_for", "status"), [("asked", "wave_done"), ("window", "waiting"), ("person", "paused")])
def test_the_status_of_one_that_waits(waits_for: str, status: str) -> None:
    assert status_of({"mode": "apply", "verdict": "aborted"}, waits_for) == status


@pytest.mark.parametrize(
    ("error", "status"), [(NotApprovedError("read it first"), "not_approved"), (AnsibleError("no"), "not_started")]
)
def test_a_refusal_is_told_and_goes_on(tmp_path: Path, error: AnsibleError, status: str) -> None:
    report = tmp_path / "upgrade.json"
    with pytest.raises(type(error)), refusal_told(report):
        raise error
    told = json.loads(status_path(report).read_text(encoding="utf-8"))
    jsonschema.validate(told, SCHEMA)
    assert (told["status"], told["reason"], told["report"]) == (status, str(error), "upgrade.json")


def test_what_is_told_inside_stays(tmp_path: Path) -> None:
    with refusal_told(tmp_path / "upgrade.json"):
        write_status(tmp_path / "upgrade.json", "running", "it has begun", "upgrade-20261126T232846Z-ffa362", 0)
    assert json.loads((tmp_path / "upgrade.status.json").read_text())["status"] == "running"


class TestLeftOut:
    """VMs that cannot be moved, and their hosts."""

    VERDICTS = {
        "vms": [
            {"name": "a", "verdict": "go", "way_back": "much else"},
            {"name": "b", "verdict": "refuse", "refusals": []},
            {"name": "c", "verdict": "already"},
        ]
    }
    RECORDS = [
        {"name": "a", "outcome": "not_attempted"},
        {"name": "b", "outcome": "refused"},
        {"name": "c", "outcome": "already"},
    ]

    @pytest.mark.parametrize(
        ("policy", "outcomes", "whole"),
        [
            ("stop", ["not_attempted", "refused", "already"], False),
            ("leave_out_vm", ["not_attempted", "left_out", "already"], False),
            ("leave_out_host", ["left_out", "left_out", "already"], True),
        ],
    )
    def test_by_the_policy(self, policy: str, outcomes: list[str], whole: bool) -> None:
        vms, left = leave_out(self.RECORDS, self.VERDICTS, policy)
        assert ([vm["outcome"] for vm in vms], left) == (outcomes, whole)

    def test_a_host_of_which_all_are_refused_is_left_out_as_a_whole(self) -> None:
        refused = {"vms": [{"name": "b", "verdict": "refuse"}]}
        assert leave_out([{"name": "b", "outcome": "refused"}], refused, "leave_out_vm")[1] is True

    def test_what_the_engine_refuses_later_is_no_such_case(self) -> None:
        going = {"vms": [{"name": "a", "verdict": "go"}]}
        vms, left = leave_out([{"name": "a", "outcome": "refused"}], going, "leave_out_vm")
        assert (vms[0]["outcome"], left) == ("refused", False)

    def test_a_later_run_is_told_of_refusals_alone(self) -> None:
        assert verdicts_to_keep({"vms": [{"name": "a", "verdict": "go"}]}) == {}
        kept = verdicts_to_keep(self.VERDICTS)["vms"]
        assert [vm["name"] for vm in kept] == ["a", "b", "c"] and "way_back" not in kept[0]

    def test_it_is_no_evidence(self) -> None:
        records = {"h1": {"outcome": "left_out", "reason": None, "vms": [{"name": "b", "outcome": "left_out"}]}}
        gate = judge(["h1"], records, None)
        assert (gate.verdict, gate.evidence.vms_left_out, gate.evidence.vms_already) == ("INCONCLUSIVE", 1, 0)
        records["h2"] = {"outcome": "ok", "reason": None, "vms": [{"name": "a", "outcome": "upgraded"}]}
        gate = judge(["h1", "h2"], records, None)
        assert (gate.verdict, gate.evidence.vms, gate.evidence.failures) == ("PASS", 1, 0)

    def test_the_core_that_was_loaded_for_it_goes(self) -> None:
        records = {
            "h1": {"outcome": "left_out", "vms": [], "kvm": {"loaded": ["new"]}},
            "h2": {"outcome": "ok", "vms": [], "kvm": {"loaded": ["new"]}},
        }
        assert left_out(["h1", "h2", "h3"], records) == ["h1"]
        assert loaded_cores(left_out(["h1", "h2"], records), records) == {"h1": ["new"]}


class TestGoingOn:
    """What the journal says of a rollout in several runs."""

    BEGIN = {"event": "begin", "waves": [["h1"], ["h2"], ["h3"]], "report": "/a/results/r.json"}
    PAUSED = {"event": "paused", "wave": 1, "waits_for": "asked", "reason": "as asked"}
    FINISH = {"event": "finish", "paused": "as asked"}

    @staticmethod
    def gate(index: int, then: str) -> dict[str, Any]:
        return {"event": "gate", "wave": index, "gate": {"then": then}}

    def test_a_pause_is_of_the_run_that_came_to_it(self) -> None:
        events = [self.BEGIN, self.gate(0, "go_on"), self.PAUSED, self.FINISH]
        assert pause_of(events) == self.PAUSED and not is_finished(events)
        assert pause_of([*events, {"event": "resume"}]) is None
        assert waves_left(events) == [["h2"], ["h3"]]

    def test_the_wave_that_waits_is_one_that_nobody_decided_on(self) -> None:
        events = [self.BEGIN, self.gate(0, "pause")]
        assert waiting_wave(events) == 0
        assert waiting_wave([*events, self.gate(0, "go_on")]) is None
        assert accepted_waves([*events, {"event": "accepted", "wave": 0}]) == {0}

    def test_waves_that_grew_are_decided_with_the_one_that_waited(self) -> None:
        events = [self.BEGIN, self.gate(0, "grow"), self.gate(1, "pause")]
        assert left_open(events) == {"pause": ["h1"]}
        assert left_open([*events, self.gate(1, "go_on"), self.gate(2, "stop")]) == {"go_on": ["h1"]}

    def test_a_rollout_that_was_gone_back_on_says_by_what(self) -> None:
        assert undone_by([self.BEGIN]) == ""
        assert undone_by([self.BEGIN, {"event": "undone", "by": "rollback-x"}]) == "rollback-x"

    def test_the_report_goes_where_the_journal_is(self) -> None:
        begin = {**self.BEGIN, "outputs": {"html": "/a/results/r.html", "prometheus": "/metrics/r.prom"}}
        elsewhere = Path("/b/copy/rollouts/x.jsonl")
        assert report_path(begin, elsewhere) == Path("/b/copy/r.json")
        assert outputs_of(begin, elsewhere) == {"html": "/b/copy/r.html", "prometheus": "/metrics/r.prom"}
        assert report_path(begin, Path("/tmp/x.jsonl")) == Path("/a/results/r.json"), "a journal alone has no place"
