# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout shows while it runs and leaves behind, run by the real ansible-playbook over scripted hosts."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from xml.etree import ElementTree

from small_terminal import SmallTerminal

from .conftest import NEW, OLD, Fleet
from .test_control_flow import valid


def results(fleet: Fleet) -> set[str]:
    """Return the names of the files that rollouts left."""
    return {path.name for path in (fleet.root / "build" / "results").iterdir() if path.is_file()}


def verdict_in_junit(path: Path) -> list[str]:
    """Return what marks the verdict."""
    case = ElementTree.fromstring(path.read_bytes()).find(".//testcase[@name='verdict']")
    assert case is not None
    return [child.tag for child in case]


def test_page_and_junit_are_beside_the_report_and_metrics_where_asked(fleet: Fleet) -> None:
    fleet.add_host("h1", {"<b>vm": {}})

    run = fleet.upgrade(upgrade_report_prometheus="metrics/vmm.prom", upgrade_downtime_budget_ms=100)

    assert run.exit_status == 0, run.output
    assert results(fleet) == {"upgrade.json", "upgrade.status.json", "upgrade.html", "upgrade.junit.xml"}
    page = (fleet.root / "build" / "results" / "upgrade.html").read_text()
    assert "&lt;b&gt;vm" in page and "<b>vm" not in page
    assert "<svg" in page
    assert verdict_in_junit(fleet.root / "build" / "results" / "upgrade.junit.xml") == []
    assert 'vmm_rollout_success{kind="upgrade"} 1' in (fleet.root / "metrics" / "vmm.prom").read_text()
    report = valid(fleet.report())
    assert report["started"] <= report["waves"][0]["started"] <= report["hosts"][0]["started"]
    assert report["vms"][0]["finished"] <= report["hosts"][0]["finished"] <= report["waves"][0]["judged"]
    assert report["waves"][0]["finished"] <= report["finished"]

    again = fleet.run(
        "report", report_html="build/results/upgrade.html", report_junit="j.xml", report_prometheus="p.prom"
    )

    assert again.exit_status == 0, again.output
    assert (fleet.root / "build" / "results" / "upgrade.html").read_text() == page
    assert (fleet.root / "j.xml").read_text() == (fleet.root / "build" / "results" / "upgrade.junit.xml").read_text()
    assert (fleet.root / "p.prom").read_text() == (fleet.root / "metrics" / "vmm.prom").read_text()
    third = fleet.run(
        "report", report_html="build/results/upgrade.html", report_junit="j.xml", report_prometheus="p.prom"
    )
    assert "changed=0" in third.output


def test_files_can_be_left_out_and_a_plan_leaves_those_of_rollouts_alone(fleet: Fleet) -> None:
    fleet.add_host("h1")

    run = fleet.upgrade("--check", upgrade_report_prometheus="p.prom", upgrade_report_junit="ci.xml")

    assert run.exit_status == 0, run.output
    assert results(fleet) == {"upgrade.plan.json", "upgrade.plan.status.json", "upgrade.plan.html"}
    assert (fleet.root / "ci.plan.xml").exists()
    assert not (fleet.root / "p.prom").exists()

    run = fleet.upgrade(upgrade_report_html="", upgrade_report_junit="")

    assert run.exit_status == 0, run.output
    assert results(fleet) == {
        *("upgrade.plan.json", "upgrade.plan.status.json", "upgrade.plan.html"),
        *("upgrade.json", "upgrade.status.json"),
    }


def test_a_failed_wave_and_its_way_back_are_told_in_all_reports(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert report["waves"][0]["judged"] < report["hosts"][0]["rollback_finished"] == report["waves"][0]["finished"]
    assert (report["waves"][1]["started"], report["hosts"][1]["finished"]) == (None, None)
    assert "Wave 0 was rolled back" in (fleet.root / "build" / "results" / "upgrade.html").read_text()
    assert verdict_in_junit(fleet.root / "build" / "results" / "upgrade.junit.xml") == ["failure"]
    assert [event["outcome"] for event in _events(fleet, "vm")] == ["upgraded", "rolled_back", "upgraded"]


def test_without_a_terminal_progress_is_plain_lines(fleet: Fleet) -> None:
    for name in ("h1", "h2", "h3"):
        fleet.add_host(name)

    run = fleet.upgrade(upgrade_waves=[1, 2], upgrade_downtime_budget_ms=100)

    assert run.exit_status == 0, run.output
    lines = [line for line in run.output.splitlines() if line.startswith("progress: ")]
    assert len(lines) == 2
    assert re.match(
        r"progress: wave 0 \(of 0 to 1\); hosts: 1 of 3 had their turn; VMs: 1 on the build; pauses: median 5 ms, longest 5 ms "
        r"\(n=1\), budget 100 ms; time: \d.* so far, about \d.* to go$",
        lines[0],
    )
    assert "wave 1 (of 0 to 1); hosts: 3 of 3 had their turn; VMs: 3 on the build" in lines[1]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", run.output)


def test_on_a_terminal_it_stays_below_and_leaves_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {}})
    fleet.add_host("h2")

    run = fleet.wait(fleet.start_on_terminal("upgrade", upgrade_build=NEW, upgrade_waves=[1]))

    assert run.exit_status == 0, run.output
    moments = [SmallTerminal(run.output[:place]).lines() for place in _moments(run.output)]
    views = [lines[-7:] for lines in moments if len(lines) >= 7 and lines[-1].startswith(" now ")]
    assert len(views) > 10
    assert any("✓ 0   ▶ 1 (1 host)" in view[1] for view in views)
    assert any("2 on the build" in view[3] for view in views)
    # These VMs end their move at once, with their host's turn.
    assert any("h1 0 VMs" in view[6] for view in views)
    last = SmallTerminal(run.output).lines()
    assert not [line for line in last if line.startswith((" now ", " hosts ", "──"))]
    assert sum(1 for line in last if line.startswith("TASK [Upgrade its VMs]")) == 2
    assert "VMs: 3 upgraded; downtime: n=3 median 5.0 ms max 5.0 ms" in last


def test_an_interrupt_on_a_terminal_leaves_all_reports(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    fifo = fleet.root / "fifo"
    os.mkfifo(fifo)
    fleet.set("h2", wait_on=str(fifo))
    process = fleet.start_on_terminal(
        "upgrade", upgrade_build=NEW, upgrade_waves=[1], upgrade_report_prometheus="p.prom"
    )
    gate = os.open(fifo, os.O_WRONLY)

    os.kill(process.pid, signal.SIGINT)
    os.close(gate)
    run = fleet.wait(process)

    assert run.exit_status not in (0, 2), run.output
    report = valid(fleet.report())
    assert (report["verdict"], [host["outcome"] for host in report["hosts"]]) == ("aborted", ["ok", "interrupted"])
    assert _events(fleet, "aborted")[0]["at"] == report["finished"]
    assert "Aborted" in (fleet.root / "build" / "results" / "upgrade.html").read_text()
    assert verdict_in_junit(fleet.root / "build" / "results" / "upgrade.junit.xml") == ["error"]
    assert 'vmm_rollout_success{kind="upgrade"} 0' in (fleet.root / "p.prom").read_text()
    last = SmallTerminal(run.output).lines()
    assert not [line for line in last if line.startswith((" now ", " hosts "))]
    assert fleet.builds("h1") == {"vm1": NEW}
    assert fleet.locks() == []


def test_the_view_can_be_chosen(fleet: Fleet) -> None:
    fleet.add_host("h1")

    run = fleet.wait(fleet.start_on_terminal("upgrade", environment={"VMM_PROGRESS_VIEW": "none"}, upgrade_build=NEW))

    assert run.exit_status == 0, run.output
    assert "progress: " not in run.output and "\x1b[J" not in run.output

    run = fleet.wait(
        fleet.start_on_terminal(
            "rollback", environment={"VMM_PROGRESS_VIEW": "plain"}, rollback_report_prometheus="back.prom"
        )
    )

    assert run.exit_status == 0, run.output
    assert (
        "progress: wave 0 (of 0 to 0); hosts: 1 of 1 had their turn; VMs: 1 on the build" in run.output
        and "\x1b[J" not in run.output
    )
    assert fleet.builds("h1") == {"vm1": OLD}
    assert 'vmm_rollout_success{kind="rollback"} 1' in (fleet.root / "back.prom").read_text()


def _events(fleet: Fleet, kind: str) -> list[dict[str, str]]:
    return [event for event in fleet.journal() if event["event"] == kind]


def _moments(output: str) -> list[int]:
    """Places where a view was just drawn: before the next one is erased."""
    return [match.start() for match in re.finditer(r"\x1b\[\d+A", output)]
