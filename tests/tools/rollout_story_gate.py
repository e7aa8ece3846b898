# SPDX-License-Identifier: GPL-3.0-or-later
"""How the waves of rollout_story.py are judged: evidence and checks as a gate gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BUDGETS_MS = {"realtime": 20.0, "standard": 200.0, "batch": 2000.0}
SERIAL = "serial: soft lockup: watchdog: BUG: soft lockup - CPU#3 stuck for 22s!"


def judged(hosts: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the judgement of a wave, given the records of its hosts."""
    vms = [(record["host"], vm) for record in records for vm in record["vms"]]
    pauses = sorted(vm["downtime_ms"] for _host, vm in vms)
    bad = [f"{host}/{vm['name']}: {vm['outcome']}: {vm['error']}" for host, vm in vms if vm["outcome"] != "upgraded"]
    slow = [
        f"{host}/{vm['name']}: downtime {vm['downtime_ms']:.1f} ms is over the budget of {vm['pause_budget_ms']:g} ms"
        for host, vm in vms
        if vm["outcome"] == "upgraded" and vm["downtime_ms"] > vm["pause_budget_ms"]
    ]
    sick = [
        f"{host}/{vm['name']}: less healthy than before: {SERIAL}" for host, vm in vms if vm["health"]["regressions"]
    ]
    reasons = [*bad, *slow, *sick]
    failures = len({reason.split(":")[0] for reason in reasons})
    bound = _upper_bound(failures, len(vms))
    return {
        "verdict": "FAIL" if reasons else "PASS",
        "reasons": reasons,
        "evidence": {
            "hosts": len(hosts),
            "hosts_failed": sum(1 for record in records if record["outcome"] != "ok"),
            "hosts_unreachable": 0,
            "vms": len(vms),
            "vms_already": 0,
            "failures": failures,
            "downtime_measured": len(pauses),
            "downtime_unmeasured": 0,
            "downtime_median_ms": pauses[len(pauses) // 2],
            "downtime_max_ms": pauses[-1],
            "downtime_budget_ms": BUDGETS_MS["standard"],
            "over_budget": len(slow) + len(bad),
            "health_regressions": len(sick),
            "failure_rate_upper_bound": bound,
            "confidence": 0.95,
        },
        "checks": [
            _failure_check(failures, len(vms), bound),
            *_downtime_checks([vm for _host, vm in vms]),
            _health_check(len(sick), len(vms)),
        ],
    }


def _failure_check(failures: int, n: int, bound: float) -> dict[str, Any]:
    return {
        "check": "failure_rate",
        "subject": "all",
        "verdict": "FAIL" if failures else "PASS",
        "n": n,
        "unit": "vm",
        "observed": failures / n,
        "bound": bound,
        "limit": 0.25,
        "confidence": 0.95,
        "n_needed": None,
        "text": f"{failures} of {n} VMs failed; the true rate is below {bound:.1%}.",
    }


def _downtime_checks(vms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    checks = []
    for vm_class, budget_ms in BUDGETS_MS.items():
        pauses = [vm["downtime_ms"] for vm in vms if vm["vm_class"] == vm_class]
        share = 0.05 ** (1 / len(pauses))
        over = sum(1 for pause in pauses if pause > budget_ms)
        checks.append(
            {
                "check": "downtime",
                "subject": vm_class,
                "verdict": "FAIL" if over else "PASS",
                "n": len(pauses),
                "unit": "vm",
                "observed": sorted(pauses)[len(pauses) // 2],
                "bound": max(pauses),
                "limit": budget_ms,
                "confidence": 0.95,
                "n_needed": None,
                "text": f"At least {share:.0%} of {vm_class} VMs pause no longer than {max(pauses):.1f} ms; {over} of "
                f"{len(pauses)} were over the budget.",
            }
        )
    return checks


def _health_check(regressions: int, n: int) -> dict[str, Any]:
    return {
        "check": "health",
        "subject": "all",
        "verdict": "FAIL" if regressions else "PASS",
        "n": n,
        "unit": "vm",
        "observed": regressions / n,
        "bound": None,
        "limit": 0.0,
        "confidence": None,
        "n_needed": None,
        "text": (
            f"{regressions} of {n} VMs are less healthy than before."
            if regressions
            else "No VM is less healthy than before."
        ),
    }


def _upper_bound(failures: int, n: int, alpha: float = 0.05) -> float:
    """Clopper-Pearson by bisection: the rate at which so few failures have a chance of ``alpha``."""
    low, high = failures / n, 1.0
    for _step in range(60):
        rate = (low + high) / 2
        chance = sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(failures + 1))
        low, high = (rate, high) if chance > alpha else (low, rate)
    return high
