# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as JUnit and as metrics, and where it is written."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rollout_story import journal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.junit import render_junit
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.metrics import render_metrics
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import (
    outputs_of,
    pending_outputs,
    planned_outputs,
    write_outputs,
    write_report,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report

SAMPLE = re.compile(r'^([a-z_]+)\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\} (-?[0-9.e+-]+)$')


@pytest.fixture(name="report")
def _report() -> dict[str, Any]:
    return build_report(journal(), aborted=False)


def cases(report: dict[str, Any]) -> dict[tuple[str, str], ElementTree.Element]:
    """Return the cases of the report's JUnit by their names, which must be unique, after a look at the counts."""
    root = ElementTree.fromstring(render_junit(report).encode())
    found = root.findall("testsuite/testcase")
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(root.attrib[name]) == sum(1 for case in found if case.find(kind) is not None)
        for suite in root:
            assert int(suite.attrib[name]) == sum(1 for case in suite if case.find(kind) is not None)
    assert int(root.attrib["tests"]) == len(found)
    by_name = {(case.attrib["classname"], case.attrib["name"]): case for case in found}
    assert len(by_name) == len(found)
    return by_name


def place(vm: dict[str, Any]) -> tuple[str, str]:
    """Return the names of a VM's case."""
    return f"wave {vm['wave']}.{vm['host']}", vm["name"]


def kinds(case: ElementTree.Element) -> list[str]:
    """Return what marks a case."""
    return [child.tag for child in case if child.tag != "system-out"]


class TestJunit:
    """What CI shows."""

    def test_each_vm_gate_and_the_verdict_is_a_case(self, report: dict[str, Any]) -> None:
        found = cases(report)

        assert len(found) == 200 + 8 + 5 + 1
        assert kinds(found["wave 0.hv-a01", "voip-001"]) == []
        assert kinds(found["wave 0", "gate"]) == []
        assert kinds(found["wave 3", "gate"]) == ["failure"]
        assert kinds(found["wave 4", "gate"]) == ["skipped"]
        assert kinds(found["wave 4", "hv-a09"]) == ["skipped"]
        assert kinds(found["upgrade", "verdict"]) == ["failure"]

    def test_what_went_wrong_fails_and_what_went_back_with_it_is_no_success(self, report: dict[str, Any]) -> None:
        found = cases(report)
        marks = {vm["name"]: kinds(found[place(vm)]) for vm in report["vms"]}

        failed = sorted(name for name, mark in marks.items() if mark == ["failure"])
        assert failed == ["db-159", "db-163", "db-183", "voip-153", "voip-157"]
        assert sum(1 for mark in marks.values() if mark == ["skipped"]) == 70
        assert sum(1 for mark in marks.values() if mark == []) == 125

    @pytest.mark.parametrize(
        ("change", "mark"),
        [
            ({"outcome": "lost", "error": "gone", "rollback": None}, "failure"),
            ({"outcome": "refused", "reason": "private RAM", "rollback": None}, "failure"),
            ({"outcome": "not_attempted", "error": "stopped", "rollback": None}, "skipped"),
            ({"rollback": {"outcome": "failed", "error": "no way"}}, "error"),
        ],
        ids="lost refused not-attempted roll-back-failed".split(),
    )
    def test_outcomes(self, report: dict[str, Any], change: dict[str, Any], mark: str) -> None:
        report["vms"][0].update(change)

        assert kinds(cases(report)[place(report["vms"][0])]) == [mark]

    def test_a_judgement_that_proved_nothing_and_stopped_nothing_is_no_failure(self, report: dict[str, Any]) -> None:
        gate = report["waves"][0]["gate"]
        for then, mark in (("go_on", "skipped"), ("pause", "failure")):
            gate.update(verdict="INCONCLUSIVE", reasons=["too few"], then=then)

            assert kinds(cases(report)["wave 0", "gate"]) == [mark]

    def test_an_unreachable_host_and_an_aborted_run_are_errors(self, report: dict[str, Any]) -> None:
        report["hosts"][0].update(outcome="unreachable", reason="no route")
        report.update(verdict="aborted")

        found = cases(report)

        assert kinds(found["wave 0", "hv-a01"]) == ["error"]
        assert kinds(found["upgrade", "verdict"]) == ["error"]

    def test_what_xml_may_not_hold_is_replaced(self, report: dict[str, Any]) -> None:
        report["vms"][0].update(outcome="failed", error="\x1b[31mred\x00 ]]> <b>&\ud800")

        failure = cases(report)[place(report["vms"][0])].find("failure")

        assert failure is not None
        assert failure.text == "\ufffd[31mred\ufffd ]]> <b>&\ufffd"


class TestMetrics:
    """What Prometheus reads."""

    def test_every_line_is_in_the_format_and_every_family_is_declared_once(self, report: dict[str, Any]) -> None:
        report["rollout_id"] = 'odd "id"\\\n'
        declared: list[str] = []
        for line in render_metrics(report).splitlines():
            if line.startswith("# TYPE "):
                declared.append(line.split()[2])
            elif not line.startswith("# HELP "):
                match = SAMPLE.match(line)
                assert match, line
                assert re.sub("_(sum|count)$", "", match[1]) == declared[-1]
        assert len(declared) == len(set(declared)) == 12

    def test_values(self, report: dict[str, Any]) -> None:
        lines = render_metrics(report).splitlines()

        for line in (
            'vmm_rollout_success{kind="upgrade"} 0',
            'vmm_rollout_vms{kind="upgrade",outcome="upgraded"} 198',
            'vmm_rollout_vms{kind="upgrade",outcome="lost"} 0',
            'vmm_rollout_vms_undone{kind="upgrade"} 73',
            'vmm_rollout_hosts{kind="upgrade",outcome="not_attempted"} 8',
            'vmm_rollout_waves{kind="upgrade",verdict="PASS"} 3',
            'vmm_rollout_waves{kind="upgrade",verdict="none"} 1',
            'vmm_rollout_downtime_seconds_count{kind="upgrade",vm_class="realtime"} 50',
            'vmm_rollout_downtime_budget_seconds{kind="upgrade",vm_class="realtime"} 0.02',
            'vmm_rollout_vms_over_budget{kind="upgrade",vm_class="realtime"} 2',
            'vmm_rollout_start_timestamp_seconds{kind="upgrade"} 1795554004.118',
        ):
            assert line in lines

    def test_a_rollout_without_vms_still_has_its_counts(self) -> None:
        text = render_metrics(build_report(journal()[:1], aborted=True))

        assert 'vmm_rollout_hosts{kind="upgrade",outcome="not_attempted"} 40' in text
        assert "downtime" not in text


class TestPlaces:
    """Which file goes where."""

    def test_page_and_junit_lie_beside_the_report_and_metrics_where_asked(self, tmp_path: Path) -> None:
        report_path = tmp_path / "upgrade.json"

        assert planned_outputs(report_path, {"html": None, "junit": None, "prometheus": None}) == {
            "html": str(tmp_path / "upgrade.html"),
            "junit": str(tmp_path / "upgrade.junit.xml"),
        }
        assert planned_outputs(report_path, {"html": "", "junit": "/ci/j.xml", "prometheus": "/m/v.prom"}) == {
            "junit": "/ci/j.xml",
            "prometheus": "/m/v.prom",
        }

    def test_only_what_differs_is_written(self, report: dict[str, Any], tmp_path: Path) -> None:
        outputs = planned_outputs(tmp_path / "r.json", {"prometheus": str(tmp_path / "deep" / "r.prom")})

        assert set(pending_outputs(report, outputs)) == set(outputs.values())
        assert not (tmp_path / "r.html").exists()
        assert set(write_outputs(report, outputs)) == set(outputs.values())
        assert write_outputs(report, outputs) == []
        assert (tmp_path / "deep" / "r.prom").stat().st_mode & 0o044 == 0o044, "another user's collector reads it"
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.prom"]

    def test_the_journal_of_a_version_that_wrote_json_alone_names_no_files(self) -> None:
        assert outputs_of({"event": "begin", "report": "/a/b/r.json"}, Path("/a/b/rollouts/x.jsonl")) == {}

    def test_the_page_names_the_checksum_of_the_report(self, report: dict[str, Any], tmp_path: Path) -> None:
        write_report(report, tmp_path / "r.json")

        assert hashlib.sha256((tmp_path / "r.json").read_bytes()).hexdigest() in render_page(report)
        changed = copy.deepcopy(json.loads((tmp_path / "r.json").read_text()))
        changed["verdict"] = "ok"
        assert hashlib.sha256((tmp_path / "r.json").read_bytes()).hexdigest() not in render_page(changed)
