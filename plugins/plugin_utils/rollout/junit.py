# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as JUnit XML: what a CI server shows of a rollout. PRIVATE to the collection.

A suite per wave with a case per VM, a case per host that has none, and the judgement; last a suite with the verdict, so that a
rollout that is not ok never shows green.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree  # only written with, never parsed

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import PASS, budget_of, is_over_budget
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.progress import stops
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES, is_good
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import milliseconds

Report = Mapping[str, Any]
Case = ElementTree.Element

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report) -> str:
    """Return the report as JUnit XML."""
    root = ElementTree.Element("testsuites", name=report["rollout_id"], time=_seconds(report))
    for wave in report["waves"]:
        cases = [_vm_case(vm, report) for vm in report["vms"] if vm["wave"] == wave["index"]]
        cases += _host_cases(wave, report)
        cases.append(_gate_case(wave))
        _add_suite(root, f"wave {wave['index']}", wave.get("started") or report["started"], cases)
    _add_suite(root, report["kind"], report["started"], [_verdict_case(report)])
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_suite(root: ElementTree.Element, name: str, started: str, cases: Sequence[Case]) -> None:
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=name,
        timestamp=started.split(".")[0].split("+")[0],  # the schema wants a local time without a zone; ours is UTC
        time=f"{sum(float(case.get('time', '0')) for case in cases):.3f}",
        tests=str(len(cases)),
        failures=str(_count(cases, "failure")),
        errors=str(_count(cases, "error")),
        skipped=str(_count(cases, "skipped")),
    )
    suite.extend(cases)


def _vm_case(vm: Mapping[str, Any], report: Report) -> Case:
    case = _case(f"wave {vm['wave']}.{vm['host']}", vm["name"], (vm["total_ms"] or 0) / 1000)
    told = [f"{name}: {vm[name]}" for name in ("mechanism", "downtime_ms", "old_build_id", "new_build_id") if vm[name]]
    if vm["rollback"]:
        told.append(f"rolled back: {vm['rollback']['outcome']}")
    if told:
        ElementTree.SubElement(case, "system-out").text = _text("\n".join(told))
    health = "; ".join((vm.get("health") or {}).get("regressions") or [])
    if vm["rollback"] and vm["rollback"]["outcome"] not in GOOD_OUTCOMES:
        _mark(case, "error", f"the roll-back: {vm['rollback']['outcome']}", vm["rollback"]["error"])
    elif vm["outcome"] == LEFT_OUT and is_good(vm):
        _mark(case, "skipped", "left out", vm["reason"])
    elif vm["outcome"] == "not_attempted":
        _mark(case, "skipped", "not attempted", vm["error"])
    elif vm["outcome"] not in GOOD_OUTCOMES:
        _mark(case, "failure", vm["outcome"].replace("_", " "), vm["error"] or vm["reason"])
    elif is_over_budget(vm, report["downtime_budget_ms"]):
        limit = budget_of(vm, report["downtime_budget_ms"])
        _mark(case, "failure", "pause too long", f"{milliseconds(vm['downtime_ms'])}, budget {milliseconds(limit)}")
    elif not is_good(vm):
        _mark(case, "failure", "less healthy than before", health)
    elif vm["rollback"]:
        _mark(case, "skipped", "upgraded, then rolled back with its wave", None)
    return case


def _host_cases(wave: Mapping[str, Any], report: Report) -> list[Case]:
    """Hosts with something to tell that none of their VMs tells."""
    told = {vm["host"] for vm in report["vms"]}
    cases = []
    for host in report["hosts"]:
        bad = host["outcome"] in ("failed", "unreachable", "interrupted")
        if host["wave"] != wave["index"] or (host["name"] in told and host["outcome"] != "unreachable"):
            continue
        case = _case(f"wave {wave['index']}", host["name"], 0)
        if bad:
            _mark(case, "error", host["outcome"], host["reason"])
        elif host["outcome"] == "not_attempted":
            _mark(case, "skipped", "not attempted", None)
        cases.append(case)
    return cases


def _gate_case(wave: Mapping[str, Any]) -> Case:
    case = _case(f"wave {wave['index']}", "gate", 0)
    gate = wave["gate"]
    if gate is None:
        _mark(case, "skipped", "not judged", None)
    elif stops(gate):
        _mark(case, "failure", gate["verdict"], "\n".join(gate["reasons"]))
    elif gate["verdict"] != PASS:
        _mark(case, "skipped", f"{gate['verdict']}, and the gate was asked to go on", "; ".join(gate["reasons"]))
    return case


def _verdict_case(report: Report) -> Case:
    case = _case(report["kind"], "verdict", 0)
    if report["verdict"] == "aborted":
        _mark(case, "error", "aborted", report["exit_reason"])
    elif report["verdict"] == "paused":
        _mark(case, "skipped", "not at its end yet", report["exit_reason"])
    elif report["verdict"] != "ok":
        _mark(case, "failure", report["verdict"], report["exit_reason"])
    return case


def _case(class_name: str, name: str, seconds: float) -> Case:
    return ElementTree.Element("testcase", classname=_text(class_name), name=_text(name), time=f"{seconds:.3f}")


def _mark(case: Case, kind: str, message: str, detail: str | None) -> None:
    mark = ElementTree.Element(kind, message=_text(message if detail is None else f"{message}: {detail}"))
    if kind != "skipped":
        mark.set("type", kind)
        mark.text = _text(detail or message)
    case.insert(0, mark)


def _count(cases: Sequence[Case], kind: str) -> int:
    return sum(1 for case in cases if case.find(kind) is not None)


def _seconds(report: Report) -> str:
    began, ended = (datetime.datetime.fromisoformat(report[key]) for key in ("started", "finished"))
    return f"{max((ended - began).total_seconds(), 0):.3f}"


def _text(value: str) -> str:
    """What an XML file may hold: an error that quotes a serial console may have anything in it."""
    return _NOT_IN_XML.sub("\ufffd", str(value))
