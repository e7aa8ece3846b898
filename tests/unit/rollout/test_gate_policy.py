# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement of a wave where something is demanded of it, and what the rollout does then."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import upper_failure_bound
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.checks import Check
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import Gate, judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look, left_open, look_at, next_step
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import GatePolicy, parse_policy
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import health_by_host, soaked_vms

SICK = {"before": [], "after": ["ping: silent"], "regressions": ["ping: silent"]}


def vms(count: int, outcome: str = "upgraded", first: int = 0, **values: Any) -> list[dict[str, Any]]:
    """Return ``count`` VM records."""
    found = {"downtime_ms": 5.0 if outcome == "upgraded" else None, "old_build_id": "old", "health": None, **values}
    return [{"name": f"vm{first + n}", "outcome": outcome, **found} for n in range(count)]


def fleet(*hosts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return host records h0, h1, ... with these VMs."""
    return {
        f"h{n}": {
            "outcome": "ok" if all(vm["outcome"] in ("upgraded", "already") for vm in found) else "failed",
            "reason": None,
            "vms": found,
        }
        for n, found in enumerate(hosts)
    }


def judged(records: dict[str, Any], budget_ms: float | None = None, look: Look | None = None, **asked: Any) -> Gate:
    """Judge the hosts that are not among the earlier ones of ``look``."""
    look = look or Look()
    look = Look(parse_policy(asked), look.earlier, look.looks, look.soaked_s, look.others, look.has_others)
    return judge([host for host in records if host not in look.earlier], records, budget_ms, look)


def check_of(gate: Gate, name: str) -> Check:
    """Return the only check of this name."""
    (found,) = [check for check in gate.checks if check.check == name]
    return found


class TestFailureRate:
    def test_few_without_a_failure_decide_nothing_and_tell_how_many_would(self) -> None:
        gate = judged(fleet(*[vms(2)] * 5), max_failure_rate=0.05)

        check = check_of(gate, "failure_rate")
        assert (gate.verdict, check.verdict, check.n, check.unit, check.n_needed) == (
            "INCONCLUSIVE",
            "INCONCLUSIVE",
            5,
            "host",
            59,
        )
        assert check.bound == pytest.approx(upper_failure_bound(0, 5))
        assert gate.reasons == [check.text]
        assert "0 of 5 hosts failed" in check.text
        assert "59 hosts in all" in check.text

    def test_enough_pass(self) -> None:
        assert judged(fleet(*[vms(2)] * 59), max_failure_rate=0.05).verdict == "PASS"
        assert judged(fleet(*[vms(2)] * 58), max_failure_rate=0.05).verdict == "INCONCLUSIVE"

    def test_a_failure_is_allowed_where_the_rate_stays_below(self) -> None:
        """93 is the published size for one failure."""
        good = [vms(1)] * 92
        gate = judged(fleet(*good, vms(1, "rolled_back")), max_failure_rate=0.05)

        assert (gate.verdict, gate.reasons) == ("PASS", [])
        assert judged(fleet(*good[1:], vms(1, "rolled_back")), max_failure_rate=0.05).verdict == "INCONCLUSIVE"
        assert gate.evidence.failures == 1

    def test_a_rate_above_fails_and_lists_who(self) -> None:
        gate = judged(fleet(*[vms(1)] * 6, *[vms(1, "rolled_back")] * 4), max_failure_rate=0.05)

        check = check_of(gate, "failure_rate")
        assert (gate.verdict, check.verdict) == ("FAIL", "FAIL")
        assert check.bound is not None and check.bound > 0.05
        assert gate.reasons[0] == check.text
        assert [reason for reason in gate.reasons if "rolled_back" in reason] == [
            f"h{n}/vm0: rolled_back" for n in (6, 7, 8, 9)
        ]

    def test_waves_add_up(self) -> None:
        records = fleet(*[vms(1)] * 59)
        earlier = tuple(f"h{n}" for n in range(30))

        assert judged(records, look=Look(earlier=earlier), max_failure_rate=0.05).verdict == "PASS"

    def test_a_bad_wave_does_not_hide_behind_good_ones(self) -> None:
        records = fleet(*[vms(1)] * 400, *[vms(1)] * 5, *[vms(1, "rolled_back")] * 5)
        earlier = tuple(f"h{n}" for n in range(400))

        gate = judged(records, look=Look(earlier=earlier), max_failure_rate=0.05)

        assert check_of(gate, "failure_rate").n == 10
        assert gate.verdict == "FAIL"

    def test_many_looks_share_the_doubt(self) -> None:
        """What one look would call shown at 95 % is not, when five are taken: each of them gets 1 %."""
        records = fleet(*[vms(1)] * 59)

        check = check_of(judged(records, look=Look(looks=5), max_failure_rate=0.05), "failure_rate")

        assert (check.verdict, check.confidence, check.n_needed) == ("INCONCLUSIVE", pytest.approx(0.99), 90)

    def test_vms_of_a_host_that_are_alike_are_worth_less(self) -> None:
        records = fleet(*[vms(10)] * 8)

        alike = check_of(judged(records, max_failure_rate=0.05, unit="vm", correlation=0.5), "failure_rate")
        apart = check_of(judged(records, max_failure_rate=0.05, unit="vm", correlation=0), "failure_rate")

        assert (apart.verdict, apart.n, apart.unit) == ("PASS", 80, "vm")
        assert (alike.verdict, alike.n, alike.n_needed) == ("INCONCLUSIVE", 80, 322)
        assert "worth 14.5" in alike.text

    def test_a_host_that_is_gone_counts_as_a_failure(self) -> None:
        records = fleet(*[vms(1)] * 20)
        hosts = [*records, "gone"]

        gate = judge(hosts, records, None, Look(GatePolicy(max_failure_rate=0.05)))

        check = check_of(gate, "failure_rate")
        assert (check.n, check.observed) == (21, pytest.approx(1 / 21))
        assert "gone: unreachable" in "\n".join(gate.reasons)

    def test_a_rerun_with_nothing_to_move_passes(self) -> None:
        gate = judged(
            fleet(vms(3, "already")), 10.0, max_failure_rate=0.05, downtime_quantile=0.9, min_vms=50, soak_s=60
        )

        assert (gate.verdict, gate.reasons) == ("PASS", [])

    def test_nothing_at_all_proves_nothing(self) -> None:
        assert judged(fleet([]), max_failure_rate=0.05).verdict == "INCONCLUSIVE"


HARD: dict[str, tuple[dict[str, Any], str]] = {
    "guest lost": ({"outcome": "lost"}, "the guest is lost"),
    "nobody knows who runs it": ({"outcome": "failed"}, "its state is not clear"),
    "process gone": ({"health": {"regressions": ["gone: no process runs this VM any more"]}}, "the guest is lost"),
    "crash": ({"health": {"regressions": ["serial crash: serial log: Kernel panic"]}}, "the guest crashed"),
    "data error": ({"health": {"regressions": ["disk_errors: disk d0: 3 requests failed"]}}, "disk requests fail"),
    "data error in the guest": ({"health": {"regressions": ["serial disk: serial log: I/O error"]}}, "disk requests"),
    "stands still": ({"health": {"regressions": ["run_state: the VM is paused"]}}, "the guest stands still"),
}


@pytest.mark.parametrize(("values", "why"), HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("asked", [{}, {"max_failure_rate": 0.5}], ids=["default", "statistics"])
def test_a_hard_stop_needs_no_statistics(values: dict[str, Any], why: str, asked: dict[str, Any]) -> None:
    records = fleet(*[vms(1)] * 300, [{**vms(1)[0], **values}])

    gate = judged(records, **asked)

    check = check_of(gate, "hard_stop")
    assert (gate.verdict, check.verdict) == ("FAIL", "FAIL")
    assert f"h300/vm0: {why}" in check.text
    assert any("h300/vm0" in reason for reason in gate.reasons)


@pytest.mark.parametrize("outcome", ["rolled_back", "refused", "not_attempted"])
def test_what_leaves_the_guest_where_it_was_is_no_hard_stop(outcome: str) -> None:
    gate = judged(fleet(*[vms(1)] * 300, vms(1, outcome)), max_failure_rate=0.05)

    assert (gate.verdict, check_of(gate, "hard_stop").verdict) == ("PASS", "PASS")


class TestDowntime:
    def test_five_pauses_show_the_median_and_no_more(self) -> None:
        check = check_of(judged(fleet(vms(5)), 10.0), "downtime")

        assert (check.verdict, check.n, check.bound, check.limit) == ("PASS", 5, 5.0, 10.0)
        assert "p50 is at most 5.0 ms (95 % confidence), nothing is shown of p90, which takes 29" in check.text

    def test_four_show_nothing(self) -> None:
        check = check_of(judged(fleet(vms(4)), 10.0), "downtime")

        assert check.bound is None
        assert "too few to say anything of others, p50 takes 5" in check.text

    @pytest.mark.parametrize(
        ("over", "of", "verdict", "needed"),
        [
            (0, 28, "INCONCLUSIVE", 29),
            (0, 29, "PASS", None),
            (1, 46, "PASS", None),
            (1, 45, "INCONCLUSIVE", 46),
            (8, 20, "FAIL", None),
        ],
    )
    def test_a_quantile_has_to_be_shown(self, over: int, of: int, verdict: str, needed: int | None) -> None:
        """29 and 46 are the published sizes for p90 with the largest and the second largest value."""
        records = fleet(*[vms(1)] * (of - over), *[vms(1, downtime_ms=80.0)] * over)

        gate = judged(records, 10.0, downtime_quantile=0.9)

        check = check_of(gate, "downtime")
        assert (gate.verdict, check.verdict, check.n_needed) == (verdict, verdict, needed)

    def test_each_class_has_its_own(self) -> None:
        slow = vms(1, first=1, vm_class="batch", pause_budget_ms=5000, downtime_ms=900.0)
        records = fleet(*[[*vms(1), *slow]] * 29, vms(1))

        gate = judged(records, 10.0, downtime_quantile=0.9)

        found = {check.subject: (check.verdict, check.bound) for check in gate.checks if check.check == "downtime"}
        assert found == {"all": ("PASS", 5.0), "batch": ("PASS", 900.0)}

    def test_what_was_not_measured_counts_as_over_the_budget(self) -> None:
        records = fleet(*[vms(1)] * 28, vms(1, downtime_ms=None))

        check = check_of(judged(records, 10.0, downtime_quantile=0.9), "downtime")

        assert (check.verdict, check.bound, check.n_needed) == ("INCONCLUSIVE", None, 46)


class TestEnoughToJudge:
    @pytest.mark.parametrize(("earlier", "verdict"), [((), "INCONCLUSIVE"), (("h0",), "INCONCLUSIVE")])
    def test_too_few_vms(self, earlier: tuple[str, ...], verdict: str) -> None:
        gate = judged(fleet(vms(5), vms(4)), look=Look(earlier=earlier), min_vms=10)

        assert gate.verdict == verdict
        assert gate.reasons == ["9 VMs had to move so far, 10 are asked for before a wave is judged"]

    def test_enough_with_the_waves_before(self) -> None:
        assert judged(fleet(vms(5), vms(5)), look=Look(earlier=("h0",)), min_vms=10).verdict == "PASS"

    def test_a_wave_that_did_not_soak(self) -> None:
        records = fleet(vms(1), vms(1), vms(1, "already"))

        gate = judged(records, look=Look(soaked_s={"h0": 60.0, "h1": 59.0}), soak_s=60)

        assert gate.verdict == "INCONCLUSIVE"
        assert "h1 did not run for 60 s before the last look" in "\n".join(gate.reasons)
        assert judged(records, look=Look(soaked_s={"h0": 60.0, "h1": 61.0}), soak_s=60).verdict == "PASS"

    def test_a_failure_does_not_wait_for_more(self) -> None:
        assert judged(fleet(vms(1, "rolled_back")), min_vms=10, soak_s=60).verdict == "FAIL"


class TestComparison:
    ASKED = {"margin": 0.05, "controls": 2}

    def others(self, bad: int, of: int) -> Look:
        return Look(others={f"0 c{n}": [n < bad] for n in range(of)}, has_others=True)

    def upgraded(self, bad: int, of: int) -> dict[str, Any]:
        return fleet(*[vms(1, health=SICK)] * bad, *[vms(1)] * (of - bad))

    def test_no_difference_between_few_is_no_pass(self) -> None:
        gate = judged(self.upgraded(0, 5), look=self.others(0, 5), **self.ASKED)

        check = check_of(gate, "comparison")
        assert (gate.verdict, check.verdict, check.observed) == ("INCONCLUSIVE", "INCONCLUSIVE", 0.0)
        assert check.n_needed == 72

    def test_no_worse_by_the_margin_passes_though_some_got_worse(self) -> None:
        gate = judged(self.upgraded(20, 1000), look=self.others(20, 1000), **self.ASKED)

        assert (gate.verdict, gate.reasons) == ("PASS", [])
        assert check_of(gate, "health").verdict == "PASS"

    def test_what_struck_all_alike_is_not_the_builds_fault(self) -> None:
        """Half of all lost their network: by itself that would be a failure rate of 50 %."""
        gate = judged(self.upgraded(1000, 2000), look=self.others(1000, 2000), **self.ASKED)

        assert gate.verdict == "PASS"

    def test_worse_by_more_than_the_margin_fails(self) -> None:
        gate = judged(self.upgraded(30, 100), look=self.others(2, 100), **self.ASKED)

        check = check_of(gate, "comparison")
        assert (gate.verdict, check.observed) == ("FAIL", pytest.approx(0.28))
        assert check.bound is not None and check.bound > 0.05

    def test_without_anybody_to_compare_with_health_counts_by_itself(self) -> None:
        gate = judged(self.upgraded(1, 20), look=Look(), **self.ASKED)

        assert gate.verdict == "FAIL"
        assert [check for check in gate.checks if check.check == "comparison"] == []

    def test_a_hard_stop_is_not_compared(self) -> None:
        crash = {"before": [], "after": [], "regressions": ["serial crash: serial log: Oops"]}
        records = fleet(*[vms(1)] * 999, vms(1, health=crash))

        assert judged(records, look=self.others(20, 1000), **self.ASKED).verdict == "FAIL"


WAVES = [["h0"], ["h1", "h2"], ["h3", "h4", "h5", "h6", "h7", "h8"]]


@pytest.mark.parametrize(
    ("verdict", "on_inconclusive", "wave", "then"),
    [
        ("PASS", "pause", 0, "go_on"),
        ("FAIL", "pass", 0, "stop"),
        ("FAIL", "grow", 0, "stop"),
        ("INCONCLUSIVE", "pause", 0, "pause"),
        ("INCONCLUSIVE", "pass", 0, "go_on"),
        ("INCONCLUSIVE", "grow", 0, "grow"),
        ("INCONCLUSIVE", "grow", 1, "pause"),  # the whole fleet without proof is too much
        ("INCONCLUSIVE", "grow", 2, "pause"),  # there is nothing left to grow by
    ],
)
def test_what_follows(verdict: str, on_inconclusive: str, wave: int, then: str) -> None:
    assert next_step(verdict, GatePolicy(on_inconclusive=on_inconclusive), WAVES, wave) == then


def test_how_far_it_may_grow_is_the_operators_choice() -> None:
    assert next_step("INCONCLUSIVE", GatePolicy(on_inconclusive="grow", grow_limit=1.0), WAVES, 1) == "grow"
    assert next_step("INCONCLUSIVE", GatePolicy(on_inconclusive="grow", grow_limit=0.3), WAVES, 0) == "pause"


class TestJournal:
    BEGIN = {"event": "begin", "waves": WAVES, "gate": {"soak_s": 30}}

    def test_the_look_is_what_the_journal_tells(self) -> None:
        events = [
            self.BEGIN,
            {"event": "host", "host": "h0", "at": "2026-01-01T00:00:00.000+00:00"},
            {"event": "host", "host": "h0", "at": "2026-01-01T00:00:31.500+00:00"},
            {"event": "others", "wave": 0, "hosts": {"h3": [{"name": "vm1", "regressions": ["ping: silent"]}]}},
            {"event": "host", "host": "h1", "at": "2026-01-01T00:01:00.000+00:00"},
        ]

        look = look_at(events, 1)

        assert (look.policy.soak_s, look.looks, list(look.earlier)) == (30, 3, ["h0"])
        assert look.soaked_s == {"h0": 31.5, "h1": 0.0}
        assert (look.others, look.has_others) == ({"0 h3": [True]}, False)
        assert look_at(events, 0).has_others

    def test_a_journal_without_a_policy_is_judged_by_the_default(self) -> None:
        assert look_at([{"event": "begin", "waves": WAVES}], 0) == Look(earlier=[], looks=3)

    @pytest.mark.parametrize(
        ("thens", "decided"),
        [
            (["go_on", "go_on"], {}),
            (["grow"], {}),
            (["grow", "stop"], {"stop": ["h0"]}),
            (["grow", "grow", "go_on"], {"go_on": ["h0", "h1", "h2"]}),
            (["grow", "pause"], {"pause": ["h0"]}),
            (["grow", "go_on", "stop"], {"go_on": ["h0"]}),
        ],
    )
    def test_waves_that_grew_share_what_was_decided_after_them(
        self, thens: list[str], decided: dict[str, list[str]]
    ) -> None:
        gates = [{"event": "gate", "wave": wave, "gate": {"then": then}} for wave, then in enumerate(thens)]

        assert left_open([self.BEGIN, *gates]) == decided


class TestSoaked:
    """What a look after the soak adds to the record of a host's turn."""

    RECORD = [
        {"name": "vm1", "outcome": "upgraded", "health": {"before": ["ping: slow"], "after": [], "regressions": []}}
    ]

    def look(self, regressions: list[str], *checks: str) -> dict[str, Any]:
        problems = [{"check": check, "subject": "", "message": "bad"} for check in checks]
        return {
            "vms": [
                {"name": "vm1", "problems": problems, "regressions": [p for p in problems if p["check"] in regressions]}
            ]
        }

    def test_what_got_worse_is_added(self) -> None:
        (vm,) = soaked_vms(self.RECORD, self.look(["tcp"], "ping", "tcp"))

        assert vm["health"] == {
            "before": ["ping: slow"],
            "after": ["ping: bad", "tcp: bad"],
            "regressions": ["tcp: bad"],
        }

    def test_what_was_worse_at_once_stays_though_it_healed(self) -> None:
        (worse,) = soaked_vms(self.RECORD, self.look(["tcp"], "tcp"))

        (vm,) = soaked_vms([worse], self.look([]))

        assert (vm["health"]["after"], vm["health"]["regressions"]) == ([], ["tcp: bad"])

    def test_without_the_look_before_the_record_tells_what_is_new(self) -> None:
        """The run that looked before was cut, so nothing counts as a regression by itself."""
        (vm,) = soaked_vms(self.RECORD, self.look([], "ping", "tcp"), compared=False)

        assert vm["health"]["regressions"] == ["tcp: bad"]

    def test_a_vm_that_was_not_seen_keeps_its_record(self) -> None:
        assert soaked_vms(self.RECORD, {"unreachable": True}) == self.RECORD


def test_looks_at_others_leave_out_who_did_not_answer() -> None:
    vm = {"name": "vm1", "regressions": [{"check": "ping", "subject": "", "message": "silent"}]}
    looks = {
        "results": [
            {"ansible_loop_var": "other", "other": "h1", "vms": [vm]},
            {"ansible_loop_var": "other", "other": "h2", "unreachable": True},
            {"ansible_loop_var": "other", "other": "h3", "failed": True, "vms": [vm]},
            {"ansible_loop_var": "other", "other": "h4", "vms": []},
        ]
    }

    assert health_by_host(looks) == {"h1": [{"name": "vm1", "regressions": ["ping: silent"]}]}


def test_each_thing_that_is_not_known_is_a_reason() -> None:
    gate = judged(fleet(vms(1, downtime_ms=None)), 10.0, min_vms=2)

    assert gate.verdict == "INCONCLUSIVE"
    assert gate.reasons == [
        "1 VM had to move so far, 2 are asked for before a wave is judged",
        "no downtime was measured for h0/vm0, so the budget cannot be judged",
    ]
