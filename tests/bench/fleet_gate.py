#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the gate stops a bad build, and how often a good one: many simulated rollouts through the real gate.

Writes ``gate`` of ``build/results/fleet.json``, leaving what else is in it; fails when what is aimed at was not reached.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import judge
from ansible_collections.vmm.live_upgrade.tests.bench.simulated_rollout import Build, Ended, Fleet, Judge, run

RESULTS = Path(__file__).resolve().parents[2] / "build" / "results" / "fleet.json"
LEAST_RECALL, MOST_FALSE_STOPS = 0.99, 0.05
SEED = 20261126
GOOD_ROLLOUTS, BAD_ROLLOUTS = 300, 100

FLEET = Fleet(
    hosts=200,
    vms_per_host=10,
    waves=(2, "10%", "25%", "100%"),
    gate={
        "max_failure_rate": 0.05,
        "downtime_quantile": 0.9,
        "margin": 0.05,
        "controls": 5,
        "unit": "vm",
        "correlation": 0.1,
        "min_vms": 20,
        "soak_s": 300,
        "on_inconclusive": "grow",
    },
)

# What happens with any build, also a good one: some VMs are taken back, some pause too long, some probes flap.
_USUAL: dict[str, float] = {"taken_back": 0.003, "slow": 0.002, "flaps": 0.002, "alike": 0.1}
GOOD = Build("good, with usual trouble", **_USUAL)
BAD = (
    Build("loses 2 % of guests", **{**_USUAL, "lost": 0.02}),
    Build("10 % are taken back", **{**_USUAL, "taken_back": 0.10}),
    Build("slow for 30 % of VMs", **{**_USUAL, "slow": 0.30}),
    Build("slow for 20 % of VMs", **{**_USUAL, "slow": 0.20}),
    Build("10 % get worse in the soak", **{**_USUAL, "late": 0.10}),
    Build("8 % taken back, 8 % worse late", **{**_USUAL, "taken_back": 0.08, "late": 0.08}),
)


@dataclass(frozen=True)
class Row:
    """One kind of build and how its rollouts ended."""

    build: Build
    is_bad: bool
    ended: Sequence[Ended]

    @property
    def stopped(self) -> int:
        """How many were stopped before the last wave; a good one that stops in the last is a false stop, too."""
        return sum(it.was_stopped if self.is_bad else it.stopped_in is not None for it in self.ended)

    def line(self) -> str:
        """Return the row of the table."""
        where = Counter(it.stopped_in for it in self.ended if it.stopped_in is not None)
        waves = ", ".join(f"{wave}: {count}" for wave, count in sorted(where.items()))
        why = ", ".join(check for check, _count in Counter(c for it in self.ended for c in it.checks).most_common(2))
        touched = statistics.median(it.hosts_touched for it in self.ended)
        kind = "bad" if self.is_bad else "good"
        return f"{self.build.name:32} {kind:5} {len(self.ended):>8} {self.stopped:>7}  {touched:>13g}  {waves:24} {why}"

    def to_dict(self) -> dict[str, Any]:
        """Return what the results have of it."""
        median = statistics.median(it.hosts_touched for it in self.ended)
        return {
            "build": self.build.name,
            "bad": self.is_bad,
            "rollouts": len(self.ended),
            "stopped": self.stopped,
            "median_hosts_touched": median,
        }


def table(good: int, bad: int, judged_by: Judge = judge) -> list[Row]:
    """Return a row per kind of build; the same numbers give the same rows."""
    rows = []
    for build in (GOOD, *BAD):
        rollouts = good if build is GOOD else bad
        ended = [run(FLEET, build, dice(f"{build.name} {n}"), judged_by) for n in range(rollouts)]
        rows.append(Row(build, build is not GOOD, ended))
    return rows


def dice(what: object) -> random.Random:
    """Return the dice of one rollout, always the same ones."""
    return random.Random(f"{SEED} {what}")  # noqa: S311  # nothing is kept secret by them


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return recall (bad builds stopped of all bad), false stops (good ones stopped of all good), and how many there were."""
    bad, good = [row for row in rows if row.is_bad], [row for row in rows if not row.is_bad]
    return {
        "recall": sum(row.stopped for row in bad) / sum(len(row.ended) for row in bad),
        "false_stop_rate": sum(row.stopped for row in good) / sum(len(row.ended) for row in good),
        "rollouts": sum(len(row.ended) for row in rows),
        "cases": [row.to_dict() for row in rows],
    }


def is_reached(found: dict[str, Any]) -> bool:
    """Whether the gate is as good as aimed at, on each kind of bad build."""
    missed = [case for case in found["cases"] if case["bad"] and case["stopped"] < LEAST_RECALL * case["rollouts"]]
    return not missed and found["recall"] >= LEAST_RECALL and found["false_stop_rate"] <= MOST_FALSE_STOPS


def keep(part: str, found: Any, results: Path) -> None:
    """Write ``found`` as ``part`` of the results; what other parts have written stays."""
    rest = json.loads(results.read_text()) if results.exists() else {}
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({**rest, part: found}, indent=1) + "\n")


def main() -> int:
    rows = table(GOOD_ROLLOUTS, BAD_ROLLOUTS)
    print(f"{'build':32} {'kind':5} {'rollouts':>8} {'stopped':>7}  {'hosts touched':>13}  {'in wave':24} mostly by")
    for row in rows:
        print(row.line())
    found = figures(rows)
    keep("gate", found, RESULTS)
    good_enough = is_reached(found)
    print(
        f"{found['rollouts']} rollouts: recall {found['recall']:.4f} (at least {LEAST_RECALL}), false stops "
        f"{found['false_stop_rate']:.4f} (at most {MOST_FALSE_STOPS}): {'reached' if good_enough else 'MISSED'}"
    )
    return 0 if good_enough else 1


if __name__ == "__main__":
    sys.exit(main())
