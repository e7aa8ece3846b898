# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The turn of one host, from the first look at it to the last: which module is asked what, and where it ends when one fails.

It is one task and not one for each step, because a task costs the controller as much whether it asks a host for an hour's work or
is only skipped. PRIVATE to the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import kvm_record
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import (
    host_outcome,
    merge_loop,
    vm_records,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import (
    LEAVE_OUT_HOST,
    LEFT_OUT,
    STOP,
    leave_out,
)

Answer = dict[str, Any]
Call = Callable[[str, dict[str, Any]], Answer]
"""Has a module of the collection, by its name, run on the host with these arguments. The answer is ``unreachable`` where the host
could not be asked."""

_UPGRADE = ("vms", "mechanism", "accept_vfio_risk", "downtime_budget_ms", "pause_budgets_ms", "vm_classes")
_MOVE = (*_UPGRADE, "prepare_timeout_s", "order", "parallel", "probes", "rollout_id", "lease")
_VERDICT = (*_UPGRADE, "prepare_timeout_s", "rehearse")


@dataclass
class Answers:
    """What the modules said of a host, each empty where it was not asked; ``failure`` is what its turn ended with.

    The last two are for a roll-back and for the cores, which a turn forward does not ask for.
    """

    kvm_load: Answer = field(default_factory=dict)
    preflight: Answer = field(default_factory=dict)
    health_before: Answer = field(default_factory=dict)
    upgrade: Answer = field(default_factory=dict)
    health_after: Answer = field(default_factory=dict)
    set_default: Answer = field(default_factory=dict)
    kvm_found: Answer = field(default_factory=dict)
    kvm_default: Answer = field(default_factory=dict)
    kvm_unload: Answer = field(default_factory=dict)
    failure: Answer = field(default_factory=dict)


def take_turn(
    call: Call, asked: Mapping[str, Any], looked: Mapping[str, Any], note: Callable[[Answers], None], is_plan: bool
) -> Answers:
    """Upgrade the VMs of a host: KVM core, verdict, health, move, health again, and then the build for VMs yet to be started.

    ``looked``: what was seen in a turn of this host that was cut; verdict and first look are left out then, since they would be
    of VMs that were touched already. ``note`` is called after that look, before a VM is touched.
    """
    turn = _Turn(call, asked, is_plan)
    try:
        if looked:
            turn.answers.kvm_load = dict(looked.get("kvm_load") or {})
            turn.answers.health_before = dict(looked["health_before"])
            turn.answers.preflight = dict(looked.get("preflight") or {})
            if asked["kvm_build_id"]:
                turn.load_core("its VMs are as the turn that was cut left them")
        else:
            turn.look_before()
            note(turn.answers)
        if turn.is_wanted:
            turn.upgrade()
    except _Ended as ended:
        turn.answers.failure = ended.answer
    return turn.answers


def start_turn(journal: Journal, host: str, run: int, batch: Collection[str]) -> Event:
    """Append that the turn of a host begins. Raises ``AnsibleError`` when the play's ``batch`` is not a wave of the plan.

    ``serial`` is read before any host's variables are: set elsewhere than with -e, plan and play would differ.
    """
    wave = journal.wave_of(host)
    stray = sorted(set(batch) - set(journal.begin()["waves"][wave]))
    if stray:
        raise AnsibleError(
            f"the play's batch holds {', '.join(stray)}, which is not in wave {wave} of the plan; nothing was touched. Give "
            "the waves and the hosts on the command line (-e), not in the inventory"
        )
    return journal.append("started", host=host, wave=wave, run=run)


def record_turn(journal: Journal, event: str, host: str, run: int, answers: Answers) -> Event:
    """Append what came of a host (``event``: ``host``, ``rollback`` or ``settled``); one that did not come where it should has
    the reason in its record.
    """
    modules = (
        answers.preflight,
        answers.health_before,
        answers.upgrade,
        answers.health_after,
        answers.set_default,
        answers.kvm_load,
        answers.kvm_found,
        answers.kvm_default,
        answers.kvm_unload,
    )
    results = [merge_loop(answer) for answer in modules]
    unreachable = any(result.get("unreachable") for result in [*results, answers.failure])
    # Of a loop that failed Ansible says only that it did; the items tell why.
    reason = message_of(merge_loop(answers.failure)) or next(
        (message_of(result) for result in results if result.get("unreachable")), None
    )
    preflight, health_before, upgrade, health_after = results[:4]
    known = vm_records(preflight, health_before, upgrade, health_after, reason)
    vms, left_out = leave_out(known, preflight, journal.begin().get("refused_vms") or STOP)
    outcome = host_outcome(vms, unreachable, failed=bool(answers.failure), left_out=left_out)
    return journal.append(
        event,
        host=host,
        wave=journal.wave_of(host),
        run=run,
        outcome=outcome,
        reason=None if outcome in ("ok", LEFT_OUT) else reason,
        vms=vms,
        previous_default=answers.set_default.get("previous"),
        default_changed=bool(answers.set_default.get("changed")),
        kvm=kvm_record(answers.kvm_load, answers.kvm_found, answers.kvm_default, answers.kvm_unload),
    )


def message_of(answer: Mapping[str, Any]) -> str | None:
    """Return what an answer says of itself."""
    return str(answer["msg"]) if answer.get("msg") else None


class _Ended(Exception):
    """A turn ends here, with ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(message_of(answer))
        self.answer = answer


class _Turn:
    """The steps, and what came of them so far."""

    def __init__(self, call: Call, asked: Mapping[str, Any], is_plan: bool) -> None:
        self.answers = Answers()
        self._call = call
        self._asked = asked
        self._is_plan = is_plan

    def look_before(self) -> None:
        """Load the core, then hear the verdict and how the VMs are. Nothing was touched so far."""
        if self._asked["kvm_build_id"]:
            self.load_core("nothing was touched")
        self.answers.preflight = self._call(
            "vm_preflight",
            {**self._builds(), **self._given(_VERDICT), "fail_on_refusal": self._asked["refused_vms"] == STOP},
        )
        _require(self.answers.preflight, "nothing was touched")
        self.answers.health_before = self._call("vm_health", self._given(("vms", "probes")))
        _require(self.answers.health_before, "nothing was touched")

    def load_core(self, state: str) -> None:
        """Not as the default: VMs that are started while others move start on what all of them go back to if their wave fails.

        ``state``: how it is with the VMs if the host cannot be asked.
        """
        core = self._asked["kvm_build_id"]
        asked = {
            "state": "present",
            "build_id": core,
            "trial": True,
            **self._given(("rollout_id", "lease", "state_dir")),
        }
        answer = self._call("kvm_core", asked)
        # as a loop over build ids answers, which is what is recorded of cores
        earlier = self.answers.kvm_load or {"results": [{**answer, "core": core, "ansible_loop_var": "core"}]}
        self.answers.kvm_load = earlier
        _require(answer, state)

    @property
    def is_wanted(self) -> bool:
        """Whether there is a VM to move: those that preflight refused, or with them all others, may be left out."""
        return not self._refused() or bool(self._movable())

    def upgrade(self) -> None:
        """Move the VMs, and look at them whatever came of it, unless the host is away."""
        chosen = {"vms": self._movable(), "order": self._asked["order"]}
        if chosen["vms"]:
            chosen["order"] = [vm for vm in chosen["order"] if vm in chosen["vms"]]
        self.answers.upgrade = self._call("vm_upgrade", {**self._builds(), **self._given(_MOVE), **chosen})
        if self.answers.upgrade.get("unreachable"):
            raise _Ended(self.answers.upgrade)
        look = {**self._given(("vms", "probes")), "baseline": self.answers.health_before}
        self.answers.health_after = self._call("vm_health", look)
        _require(self.answers.upgrade)
        _require(self.answers.health_after, "its VMs were upgraded, their health is not known")
        if self._asked["set_default"] and not self._asked["vms"]:
            choice = {"build_id": self._asked["build_id"], **self._given(("rollout_id", "lease", "state_dir"))}
            self.answers.set_default = self._call("artifact_default", choice)
            _require(self.answers.set_default, "its VMs were upgraded, new ones still start on the old build")

    def _refused(self) -> list[str]:
        verdicts = self.answers.preflight.get("vms") or []
        return [str(vm["name"]) for vm in verdicts if vm["verdict"] == "refuse"]

    def _movable(self) -> list[str]:
        """The VMs to move; where none is refused, all that are asked for, so none for all of the host."""
        refused = self._refused()
        if not refused:
            return list(self._asked["vms"])
        if self._asked["refused_vms"] == LEAVE_OUT_HOST:
            return []
        return [str(vm["name"]) for vm in self.answers.preflight["vms"] if str(vm["name"]) not in refused]

    def _builds(self) -> dict[str, Any]:
        return {**self._given(("build_id", "kvm_build_id", "state_dir")), "kvm_load_later": self._is_plan}

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """What was not given is left to the module."""
        return {name: self._asked[name] for name in names if self._asked[name] is not None}


def _require(answer: Answer, state: str = "") -> None:
    """Raise ``_Ended`` with an answer that is none. ``state``: how it is with the VMs of a host that could not be asked."""
    if answer.get("unreachable"):
        raise _Ended({**answer, "msg": f"{answer.get('msg')}; {state}" if state else answer.get("msg")})
    if answer.get("failed"):
        raise _Ended(answer)
