# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the answers of modules to records, from the journal to the report, from the report to what people read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import write_report
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import (
    host_outcome,
    merge_loop,
    vm_records,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import (
    build_report,
    load_report,
    previous_builds,
    previous_defaults,
)

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs" / "upgrade.schema.json").read_text(encoding="utf-8"))


def upgraded(name: str = "vm1", **values: Any) -> dict[str, Any]:
    """Return what vm_upgrade says of a VM it moved."""
    return {
        "name": name,
        "outcome": "upgraded",
        "mechanism": "cpr-transfer",
        "reason": "the best both can do",
        "downtime_ms": 5.25,
        "downtime_source": "guest-ram-word",
        "total_ms": 80.0,
        "extra_memory_mib": 12.5,
        "cpu_s": 0.3,
        "old_build_id": "qemu-10.2.2-0000000000000000",
        "new_build_id": "qemu-11.1.1-1111111111111111",
        "old_pid": 10,
        "new_pid": 11,
        "error": None,
        **values,
    }


def began(*waves: list[str], plan: bool = False) -> Event:
    """Return the first event of a journal."""
    return {
        "event": "begin",
        "at": "2026-11-23T08:00:00.000+00:00",
        "rollout_id": "upgrade-20261123T080000Z-0a1b2c",
        "kind": "upgrade",
        "build_id": "qemu-11.1.1-1111111111111111",
        "plan": plan,
        "waves": list(waves),
        "downtime_budget_ms": 100.0,
        "report": "upgrade.json",
        "owner_pid": 1,
    }


def turn(host: str, *results: dict[str, Any], wave: int = 0, event: str = "host", **values: Any) -> Event:
    """Return the event of a host's turn."""
    vms = vm_records({}, {}, {"vms": list(results)}, {})
    return {
        "event": event,
        "host": host,
        "wave": wave,
        "outcome": host_outcome(vms, unreachable=False, failed=False),
        "reason": None,
        "vms": vms,
        "previous_default": None,
        "default_changed": False,
        **values,
    }


def gated(wave: int, hosts: list[str], *turns: Event) -> Event:
    """Return the event of a wave's judgement."""
    return {
        "event": "gate",
        "wave": wave,
        "gate": judge(hosts, {event["host"]: event for event in turns}, 100.0).to_dict(),
    }


def reported(*events: Event, aborted: bool = False) -> dict[str, Any]:
    """Return the report of a journal, held against the schema."""
    report = build_report(events, aborted)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    return report


class TestRecords:
    """One record per VM, from the furthest step that knows it."""

    def test_the_upgrade_knows_best(self) -> None:
        (record,) = vm_records(
            {"vms": [{"name": "vm1", "verdict": "go"}]},
            {"vms": [{"name": "vm1", "problems": []}]},
            {"vms": [upgraded()]},
            {},
        )

        assert (record["outcome"], record["downtime_ms"], record["health"]["after"]) == ("upgraded", 5.25, None)
        assert "old_pid" not in record

    @pytest.mark.parametrize(
        ("verdict", "outcome"),
        [("go", "not_attempted"), ("refuse", "refused"), ("already", "already"), ("odd", "refused")],
    )
    def test_without_an_upgrade_the_verdict_counts(self, verdict: str, outcome: str) -> None:
        refusals = [{"code": "ram", "message": "its RAM is private"}]
        (record,) = vm_records({"vms": [{"name": "vm1", "verdict": verdict, "refusals": refusals}]}, {}, {}, {})

        assert (record["outcome"], record["reason"]) == (outcome, "its RAM is private")

    def test_a_vm_that_had_no_turn_says_what_its_host_ended_with(self) -> None:
        verdicts = {"vms": [{"name": "vm1", "verdict": "go", "old_build_id": "old", "new_build_id": "new"}]}

        (record,) = vm_records(verdicts, {}, {}, {}, failure="no space left")

        assert (record["outcome"], record["error"]) == ("not_attempted", "no space left")
        assert record["new_build_id"] == "old", "it runs what it ran"

    def test_a_vm_last_seen_at_a_step_is_in_an_unclear_state(self) -> None:
        (record,) = vm_records({}, {}, {"vms": [{"name": "vm1", "step": "spawned"}]}, {})

        assert record["outcome"] == "failed"
        assert "contact was lost at step spawned" in record["error"]

    @pytest.mark.parametrize(
        ("preflight", "health", "upgrade", "seen"),
        [
            ({"old_build_id": "b1"}, {}, {}, ("b1", True)),
            ({}, {"pid": 7, "build_id": "b1"}, {}, ("b1", True)),
            ({"old_build_id": None}, {}, {}, (None, True)),
            ({}, {"pid": 7, "build_id": None}, {}, (None, True)),
            ({}, {"pid": 0, "build_id": None}, {}, (None, False)),
            ({"old_build_id": "b1"}, {}, {"step": "spawned"}, ("b1", True)),
            ({}, {"pid": 7, "build_id": "b1"}, {"step": "spawned"}, ("b1", True)),
            ({}, {}, {"step": "spawned"}, (None, False)),
            (
                {"old_build_id": "b1"},
                {"pid": 7, "build_id": "b1"},
                {"outcome": "lost", "old_build_id": "b2"},
                ("b2", True),
            ),
        ],
        ids="verdict look foreign-by-verdict foreign-by-look gone lost-contact lost-after-look nobody best".split(),
    )
    def test_the_build_before_is_that_which_somebody_saw(
        self, preflight: dict[str, Any], health: dict[str, Any], upgrade: dict[str, Any], seen: tuple[str | None, bool]
    ) -> None:
        answers = [{"vms": [{"name": "vm1", **known}] if known else []} for known in (preflight, health, upgrade)]
        (record,) = vm_records(*answers, {})

        assert (record["old_build_id"], record["old_build_known"]) == seen

    def test_health_is_told_before_and_after(self) -> None:
        problem = {"check": "ping", "subject": "", "message": "silent"}
        (record,) = vm_records(
            {},
            {"vms": [{"name": "vm1", "problems": []}]},
            {"vms": [upgraded()]},
            {"vms": [{"name": "vm1", "problems": [problem], "regressions": [problem]}]},
        )

        assert record["health"] == {"before": [], "after": ["ping: silent"], "regressions": ["ping: silent"]}
        assert host_outcome([record], unreachable=False, failed=False) == "failed"

    def test_a_loop_reads_as_one_answer(self) -> None:
        merged = merge_loop(
            {"results": [{"vms": [upgraded("a")]}, {"unreachable": True, "msg": "gone"}], "msg": "All items"}
        )

        assert ([vm["name"] for vm in merged["vms"]], merged["unreachable"], merged["msg"]) == (["a"], True, "gone")


class TestReport:
    """What a journal amounts to."""

    def test_success(self) -> None:
        turns = [turn("h1", upgraded()), turn("h2", upgraded(downtime_ms=7.25), wave=1)]

        report = reported(
            began(["h1"], ["h2"]), turns[0], gated(0, ["h1"], turns[0]), turns[1], gated(1, ["h2"], turns[1])
        )

        assert (report["verdict"], report["summary"]["downtime_median_ms"]) == ("ok", 6.25)
        assert [host["outcome"] for host in report["hosts"]] == ["ok", "ok"]

    def test_a_wave_without_a_judgement_is_no_success(self) -> None:
        first = turn("h1", upgraded())

        assert reported(began(["h1"], ["h2"]), first, gated(0, ["h1"], first))["verdict"] == "failed"
        assert reported(began())["verdict"] == "failed"

    def test_a_bad_wave_that_went_back(self) -> None:
        first = turn("h1", upgraded(), upgraded("vm2", outcome="rolled_back", downtime_ms=None, downtime_source=None))
        back = turn("h1", upgraded(new_build_id="qemu-10.2.2-0000000000000000"), event="rollback")

        report = reported(began(["h1"], ["h2"]), first, gated(0, ["h1"], first), back)

        assert (report["verdict"], report["waves"][0]["rolled_back"], report["summary"]["undone"]) == (
            "failed",
            True,
            1,
        )
        assert report["exit_reason"].endswith("rolled back")
        assert [host["outcome"] for host in report["hosts"]] == ["failed", "not_attempted"]
        assert previous_builds(report, []) == {}

    def test_a_roll_back_that_failed_is_said(self) -> None:
        first = turn("h1", upgraded(downtime_ms=500.0))
        back = turn("h1", upgraded(outcome="failed", downtime_ms=None, downtime_source=None), event="rollback")

        report = reported(began(["h1"]), first, gated(0, ["h1"], first), back)

        assert "the roll-back of h1 failed too, a person must look" in report["exit_reason"]
        assert report["vms"][0]["rollback"]["outcome"] == "failed"

    def test_the_journal_of_a_version_that_knew_no_kvm_cores_is_read(self) -> None:
        first, back = turn("h1", upgraded(downtime_ms=500.0)), turn("h1", upgraded(), event="rollback")
        for event in (first, back):
            for vm in event["vms"]:
                del vm["kvm"]

        report = reported(began(["h1"]), first, gated(0, ["h1"], first), back)

        assert (report["kvm_build"], report["hosts"][0]["kvm"]) == (None, None)
        assert (report["vms"][0]["kvm"], report["vms"][0]["rollback"]["kvm"]) == (None, None)
        assert "KVM" not in render_table(report)

    def test_a_host_whose_cores_are_not_as_they_should_be_is_no_success(self) -> None:
        first = turn("h1", upgraded())
        settled = turn("h1", event="settled", outcome="failed", reason="the kernel refuses it")

        report = reported(began(["h1"], ["h2"]), first, gated(0, ["h1"], first), settled)

        assert (report["verdict"], report["vms"][0]["outcome"]) == ("failed", "upgraded")
        assert "h1: the kernel refuses it" in report["exit_reason"]

    def test_an_aborted_run_is_never_ok(self) -> None:
        first = turn("h1", upgraded())
        started = {"event": "started", "host": "h2", "wave": 1}

        report = reported(began(["h1"], ["h2", "h3"]), first, gated(0, ["h1"], first), started, aborted=True)

        assert report["verdict"] == "aborted"
        assert [host["outcome"] for host in report["hosts"]] == ["ok", "interrupted", "not_attempted"]

    def test_a_host_that_left_before_its_record_is_unreachable(self) -> None:
        report = reported(began(["h1"]), {"event": "started", "host": "h1", "wave": 0}, gated(0, ["h1"]))

        assert (report["hosts"][0]["outcome"], report["verdict"]) == ("unreachable", "failed")

    def test_builds_before_are_found_again(self, tmp_path: Path) -> None:
        first = turn(
            "h1",
            upgraded(),
            upgraded("vm2", old_build_id="older"),
            upgraded("vm3", outcome="already"),
            previous_default="older",
            default_changed=True,
        )
        write_report(reported(began(["h1"]), first, gated(0, ["h1"], first)), tmp_path / "r.json")

        report = load_report(tmp_path / "r.json")

        assert previous_builds(report, []) == {
            "h1": [{"build_id": "qemu-10.2.2-0000000000000000", "vms": ["vm1"]}, {"build_id": "older", "vms": ["vm2"]}]
        }
        assert previous_builds(report, ["vm2"]) == {"h1": [{"build_id": "older", "vms": ["vm2"]}]}
        assert previous_defaults(report) == {"h1": "older"}

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', "nonsense"])
    def test_what_is_no_report_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "r.json").write_text(text, encoding="utf-8")

        with pytest.raises(AnsibleError, match="r.json is not a report"):
            load_report(tmp_path / "r.json")

    def test_the_schema_can_fail(self) -> None:
        report = reported(began(["h1"]), turn("h1", upgraded()), gated(0, ["h1"], turn("h1", upgraded())))
        validator = jsonschema.Draft202012Validator(SCHEMA)
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        for path, value in (
            (("verdict",), "fine"),
            (("vms", 0, "downtime_source"), None),
            (("vms", 0, "outcome"), "done"),
        ):
            spoilt: Any = json.loads(json.dumps(report))
            target = spoilt
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            assert not validator.is_valid(spoilt), path


class TestTable:
    """What people read."""

    def test_every_vm_and_every_host_has_a_line(self) -> None:
        first = turn(
            "h1", upgraded(), upgraded("vm2", outcome="lost", downtime_ms=None, downtime_source=None, total_ms=None)
        )
        report = reported(began(["h1"], ["h2"]), first, gated(0, ["h1"], first))

        table = render_table(report)

        lines = [line.split() for line in table.splitlines()]
        assert [
            "0",
            "h1",
            "vm1",
            upgraded()["old_build_id"],
            upgraded()["new_build_id"],
            "cpr-transfer",
            "5.2",
            "ms",
            "80.0",
            "ms",
            "upgraded",
        ] in lines
        assert ["1", "h2", "-", "-", "-", "-", "-", "-", "not_attempted"] in lines
        assert "FAILED" in table
        assert "VMs: 1 lost, 1 upgraded; downtime: n=1 median 5.2 ms max 5.2 ms" in table

    def test_a_build_that_nobody_saw_is_not_called_foreign(self) -> None:
        first = turn("h1", upgraded(old_build_id=None), {"name": "vm2", "step": "spawned"})

        table = render_table(reported(began(["h1"]), first, gated(0, ["h1"], first)))

        assert {tuple(line.split()[2:4]) for line in table.splitlines() if line.startswith("0 ")} == {
            ("vm1", "foreign"),
            ("vm2", "unknown"),
        }

    def test_kvm_is_shown_where_it_is_moved(self) -> None:
        """Where it is not, the table is as it ever was."""
        first = turn("h1", upgraded(kvm_build_id_before="core-a", kvm_build_id="core-b"), upgraded("vm2"))
        first["kvm"] = {"loaded": ["core-b"], "default": None, "previous_default": None, "unloaded": [], "kept": []}
        kept = [{"core": "core-a", "reason": "in use by <vm9>"}]
        settled = turn("h1", event="settled", kvm={**first["kvm"], "loaded": [], "default": "core-b", "kept": kept})

        report = reported(began(["h1"]), first, gated(0, ["h1"], first), settled)

        lines = [line.split() for line in render_table(report).splitlines()]
        assert [line[5:8] for line in lines if line[:2] == ["0", "h1"]] == [
            ["core-a", "core-b", "cpr-transfer"],
            ["-", "-", "cpr-transfer"],
        ]
        told = "KVM on h1: core-b loaded; core-b made the default; core-a kept: in use by "
        assert f"{told}<vm9>" in render_table(report)
        page = render_page(report)
        assert "core-a kept: in use by &lt;vm9&gt;" in page
        assert "core-b made the default" in page
        plain = turn("h1", upgraded())
        assert "KVM" not in render_table(reported(began(["h1"]), plain, gated(0, ["h1"], plain)))


class TestJournal:
    """Events survive writers that are killed."""

    def test_a_torn_line_spoils_only_itself(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "j.jsonl")
        journal.append("begin", waves=[])
        with journal.path.open("ab") as stream:
            stream.write(b'{"event": "ho')
        journal.append("finish")

        assert [event["event"] for event in journal.read()] == ["begin", "finish"]
        assert journal.path.stat().st_mode & 0o777 == 0o600

    def test_what_is_no_journal_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "j.jsonl").write_text("{}\n", encoding="utf-8")

        with pytest.raises(AnsibleError, match="does not start with its beginning"):
            Journal(tmp_path / "j.jsonl").read()
        with pytest.raises(AnsibleError, match="cannot be read"):
            Journal(tmp_path / "none.jsonl").read()


class TestLock:
    """No host is in two rollouts at once."""

    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def test_shared_hosts_are_refused_until_released(self) -> None:
        lock.acquire("first", {"h1": "h1:22", "h2": "h2:22"}, os.getpid())
        with pytest.raises(AnsibleError, match="rollout first .* is working on two"):
            lock.acquire("second", {"two": "h2:22", "h3": "h3:22"}, os.getpid())
        lock.acquire("third", {"h1": "other:22"}, os.getpid())

        lock.release("first")
        lock.acquire("second", {"two": "h2:22"}, os.getpid())

    def test_the_lock_of_a_dead_process_is_stale(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
            lock.acquire("first", {"h1": "h1:22"}, owner.pid)
            with pytest.raises(AnsibleError, match="is working on h1"):
                lock.acquire("second", {"h1": "h1:22"}, os.getpid())
        lock.acquire("second", {"h1": "h1:22"}, os.getpid())

        assert [path.name for path in lock.lock_directory().glob("*.json")] == ["second.json"]
