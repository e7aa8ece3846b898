# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated rollouts: they are told apart by the real gate, and a gate that is no good is seen to be none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import Gate, judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look
from ansible_collections.vmm.live_upgrade.tests.bench.fleet_gate import (
    BAD,
    FLEET,
    GOOD,
    dice,
    figures,
    is_reached,
    keep,
    table,
)
from ansible_collections.vmm.live_upgrade.tests.bench.simulated_rollout import Build, run


def always(verdict: str) -> Any:
    """Return a gate that always comes to ``verdict``."""

    def judged(
        hosts: Sequence[str], records: Mapping[str, Any], budget_ms: float | None, look: Look | None = None
    ) -> Gate:
        return replace(judge(hosts, records, budget_ms, look), verdict=verdict)

    return judged


def test_a_few_rollouts_are_told_apart_and_the_same_again() -> None:
    rows = table(good=4, bad=2)

    assert is_reached(figures(rows))
    assert figures(rows)["rollouts"] == 4 + 2 * len(BAD)
    assert [row.ended for row in table(good=4, bad=2)] == [row.ended for row in rows]


@pytest.mark.parametrize(("verdict", "recall", "false_stops"), [("PASS", 0.0, 0.0), ("FAIL", 1.0, 1.0)])
def test_a_gate_that_does_not_look_is_found_out(verdict: str, recall: float, false_stops: float) -> None:
    found = figures(table(good=2, bad=1, judged_by=always(verdict)))

    assert (found["recall"], found["false_stop_rate"]) == (recall, false_stops)
    assert not is_reached(found)


def test_one_kind_of_build_that_slips_through_is_not_made_up_for_by_the_others() -> None:
    found = figures(table(good=2, bad=1))
    slipped = {**found["cases"][1], "stopped": 0}

    assert not is_reached({**found, "cases": [found["cases"][0], slipped, *found["cases"][2:]]})


def test_the_default_stops_at_the_first_trouble_that_a_good_build_has_too() -> None:
    """Why there is a policy at all: in a large fleet something always happens."""
    default = replace(FLEET, gate={})

    ended = [run(default, GOOD, dice(n)) for n in range(5)]

    assert all(it.stopped_in is not None for it in ended)
    assert run(default, Build("without any trouble"), dice(1)).stopped_in is None


def test_results_of_others_stay(tmp_path: Path) -> None:
    results = tmp_path / "results" / "fleet.json"
    keep("gate", {"recall": 0.5}, results)
    results.write_text(json.dumps({"scale": [1], "gate": {"recall": 0.1}}))

    keep("gate", {"recall": 1.0}, results)

    assert json.loads(results.read_text()) == {"scale": [1], "gate": {"recall": 1.0}}
