# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The turn of a host: what it is asked in which order, where that ends, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.turn import (
    Answer,
    Answers,
    record_turn,
    start_turn,
    take_turn,
)

ASKED: dict[str, Any] = {
    "build_id": "new",
    "kvm_build_id": None,
    "state_dir": "/state",
    "vms": [],
    "order": [],
    "mechanism": "auto",
    "accept_vfio_risk": False,
    "rehearse": False,
    "parallel": 1,
    "downtime_budget_ms": None,
    "pause_budgets_ms": {},
    "vm_classes": {},
    "prepare_timeout_s": 60,
    "probes": {"vm1": {"ping": "192.0.2.1"}},
    "rollout_id": "r1",
    "lease": None,
    "set_default": True,
    "refused_vms": "stop",
}
UPGRADED = {"name": "vm1", "outcome": "upgraded", "old_build_id": "old", "new_build_id": "new", "downtime_ms": 5.0}
HEALTHY = {"name": "vm1", "pid": 1, "build_id": "old", "problems": [], "regressions": []}
AWAY = {"unreachable": True, "failed": False, "msg": "no route"}


class Host:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, **answers: Answer | list[Answer]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.noted: list[int] = []
        self._answers: dict[str, Any] = {
            "vm_preflight": {"vms": [{"name": "vm1", "verdict": "go", "old_build_id": "old"}]},
            "vm_health": {"vms": [HEALTHY]},
            "vm_upgrade": {"changed": True, "vms": [UPGRADED]},
            "artifact_default": {"changed": True, "previous": "old"},
            "kvm_core": {"changed": True, "trial": True},
            **answers,
        }

    def call(self, module: str, arguments: dict[str, Any]) -> Answer:
        self.calls.append((module, arguments))
        answer = self._answers[module]
        return dict(answer.pop(0) if isinstance(answer, list) else answer)

    def turn(self, looked: dict[str, Any] | None = None, is_plan: bool = False, **asked: Any) -> Answers:
        """Take its turn."""
        return take_turn(
            self.call, {**ASKED, **asked}, looked or {}, lambda _seen: self.noted.append(len(self.calls)), is_plan
        )

    @property
    def asked(self) -> list[str]:
        """The modules, in order."""
        return [module for module, _arguments in self.calls]


def recorded(tmp_path: Path, answers: Answers) -> dict[str, Any]:
    journal = Journal(tmp_path / "rollout.jsonl")
    journal.append("begin", waves=[["h1"]])
    return record_turn(journal, "host", "h1", 1, answers)


def test_a_turn_from_the_verdict_to_the_default_build(tmp_path: Path) -> None:
    host = Host()
    answers = host.turn()
    assert host.asked == ["vm_preflight", "vm_health", "vm_upgrade", "vm_health", "artifact_default"]
    assert host.noted == [2], "what was seen is noted before a VM is touched"
    assert "baseline" not in host.calls[1][1] and host.calls[3][1]["baseline"] == {"vms": [HEALTHY]}
    assert host.calls[0][1]["fail_on_refusal"] is True
    assert {"downtime_budget_ms", "kvm_build_id", "lease"}.isdisjoint(
        host.calls[2][1]
    ), "what is not given is the module's"
    record = recorded(tmp_path, answers)
    assert (record["outcome"], record["reason"], record["default_changed"]) == ("ok", None, True)
    assert (record["vms"][0]["outcome"], record["vms"][0]["downtime_ms"]) == ("upgraded", 5.0)


REFUSED = {"failed": True, "msg": "refused: vm1", "vms": [{"name": "vm1", "verdict": "refuse"}]}
TAKEN_BACK = {"failed": True, "msg": "VM vm1: rolled_back", "vms": [{**UPGRADED, "outcome": "rolled_back"}]}
BLIND = {"failed": True, "msg": "nobody can look"}


@pytest.mark.parametrize(
    ("answers", "last", "outcome", "reason"),
    [
        ({"vm_preflight": REFUSED}, "vm_preflight", "failed", "refused: vm1"),
        ({"vm_preflight": AWAY}, "vm_preflight", "unreachable", "no route; nothing was touched"),
        ({"vm_health": BLIND}, "vm_health", "failed", "nobody can look"),
        ({"vm_health": AWAY}, "vm_health", "unreachable", "no route; nothing was touched"),
        ({"vm_upgrade": TAKEN_BACK}, "vm_health", "failed", "VM vm1: rolled_back"),
        (
            {"vm_upgrade": TAKEN_BACK, "vm_health": [{"vms": [HEALTHY]}, BLIND]},
            "vm_health",
            "failed",
            "VM vm1: rolled_back",
        ),
        ({"vm_upgrade": AWAY}, "vm_upgrade", "unreachable", "no route"),
        (
            {"vm_health": [{"vms": [HEALTHY]}, AWAY]},
            "vm_health",
            "unreachable",
            "no route; its VMs were upgraded, their health is not known",
        ),
        (
            {"artifact_default": AWAY},
            "artifact_default",
            "unreachable",
            "no route; its VMs were upgraded, new ones still start on the old build",
        ),
    ],
)
def test_a_turn_ends_with_the_first_step_that_fails(
    tmp_path: Path, answers: dict[str, Any], last: str, outcome: str, reason: str
) -> None:
    host = Host(**answers)
    record = recorded(tmp_path, host.turn())
    assert (host.asked[-1], record["outcome"], record["reason"]) == (last, outcome, reason)


def test_a_core_is_loaded_first_and_on_trial(tmp_path: Path) -> None:
    host = Host()
    record = recorded(tmp_path, host.turn(kvm_build_id="kvm-6.12.95-bbbbbbbbbbbbbbbb"))
    assert host.asked[:2] == ["kvm_core", "vm_preflight"]
    assert (host.calls[0][1]["state"], host.calls[0][1]["trial"]) == ("present", True)
    assert record["kvm"]["loaded"] == ["kvm-6.12.95-bbbbbbbbbbbbbbbb"]
    failed = Host(kvm_core={"failed": True, "msg": "no such core"})
    assert failed.turn(kvm_build_id="kvm-6.12.95-bbbbbbbbbbbbbbbb").failure["msg"] == "no such core"
    assert failed.asked == ["kvm_core"]


@pytest.mark.parametrize(
    "looked, state",
    [(None, "nothing was touched"), ({"health_before": {}}, "its VMs are as the turn that was cut left them")],
    ids=["first", "resumed"],
)
def test_a_host_that_is_away_when_its_core_is_loaded_is_told_with_the_state_of_its_vms(
    looked: dict[str, Any] | None, state: str
) -> None:
    host = Host(kvm_core=AWAY)

    answers = host.turn(looked=looked, kvm_build_id="core")

    assert answers.failure["msg"] == f"no route; {state}"
    assert host.asked == ["kvm_core"]


def test_a_turn_that_was_cut_goes_on_with_what_was_seen_then() -> None:
    before = {"vms": [{**HEALTHY, "problems": ["then"]}]}
    host = Host()
    answers = host.turn(looked={"health_before": before, "kvm_load": {}})
    assert host.asked == ["vm_upgrade", "vm_health", "artifact_default"]
    assert host.calls[1][1]["baseline"] == before == answers.health_before
    assert host.noted == []


@pytest.mark.parametrize("asked", [{"vms": ["vm1"]}, {"set_default": False}], ids=["some-vms", "not-asked"])
def test_the_default_build_is_left_alone(asked: dict[str, Any]) -> None:
    host = Host()
    host.turn(**asked)
    assert "artifact_default" not in host.asked


MIXED = {"vms": [{"name": "vm1", "verdict": "go", "old_build_id": "old"}, {"name": "vm2", "verdict": "refuse"}]}


@pytest.mark.parametrize(
    ("policy", "moved"), [("leave_out_vm", ["vm1"]), ("leave_out_host", None)], ids=["the-vm", "the-host"]
)
def test_what_is_refused_is_left_out(policy: str, moved: list[str] | None) -> None:
    host = Host(vm_preflight=MIXED)
    host.turn(refused_vms=policy, order=["vm2", "vm1"])
    assert host.calls[0][1]["fail_on_refusal"] is False
    asked = [(arguments["vms"], arguments["order"]) for module, arguments in host.calls if module == "vm_upgrade"]
    assert asked == ([] if moved is None else [(moved, moved)])
    assert ("artifact_default" in host.asked) == (moved is not None)
    again = Host()
    again.turn(looked={"health_before": {"vms": [HEALTHY]}, "preflight": MIXED}, refused_vms=policy)
    assert [arguments["vms"] for module, arguments in again.calls if module == "vm_upgrade"] == (
        [moved] if moved else []
    )


def test_a_plan_does_not_ask_for_the_core_to_be_there() -> None:
    host = Host()
    host.turn(is_plan=True)
    assert [arguments["kvm_load_later"] for module, arguments in host.calls if "kvm_load_later" in arguments] == [
        True,
        True,
    ]


def test_a_batch_that_is_no_wave_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rollout.jsonl")
    journal.append("begin", waves=[["h1"], ["h2"]])
    with pytest.raises(AnsibleError, match="holds h2, which is not in wave 0 of the plan; nothing was touched"):
        start_turn(journal, "h1", 1, ["h1", "h2"])
    assert start_turn(journal, "h1", 1, ["h1"])["wave"] == 0
