# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The single checks that a judgement consists of, each with its figures and a sentence. PRIVATE to the collection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import smallest_size
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.findings import Finding
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import HOST, VM, GatePolicy
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.sample import (
    INDEPENDENT,
    Sample,
    quantile_bound,
    sample_of,
    worst_of,
)

Pauses = Mapping[str, Sequence[float]]
"""Per host the pauses of VMs, in milliseconds."""

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
ALL = "all"
_TOLD_QUANTILES = (0.99, 0.95, 0.9, 0.5)


@dataclass(frozen=True)
class Check:
    """One thing that was judged.

    ``subject``: a class of VMs, or ``all``. ``n``: how many units, each a VM or a host. ``observed``, ``bound``, ``limit``: a
    rate, or milliseconds for the downtime; the bound holds with ``confidence``. ``n_needed``: how many units would decide it.
    """

    check: str
    subject: str
    verdict: str
    n: int
    unit: str
    observed: float | None
    bound: float | None
    limit: float | None
    confidence: float | None
    n_needed: int | None
    text: str


def hard_stop(hard: Sequence[Finding], vms: int) -> Check:
    """No statistics excuse a lost guest, a crash, failing disks, or not knowing who runs a guest."""
    told = "; ".join(f"{finding.host}/{finding.vm}: {finding.hard}" for finding in hard)
    return Check(
        check="hard_stop",
        subject=ALL,
        verdict=FAIL if hard else PASS,
        n=vms,
        unit=VM,
        observed=float(len(hard)),
        bound=None,
        limit=0.0,
        confidence=None,
        n_needed=None,
        text=told or "no guest was lost or crashed, no disk request failed, and who runs each guest is known",
    )


def failures_told(seen: Sample, hosts: int, verdict: str, confidence: float) -> Check:
    """No failure is allowed: how many there were, and what that shows of the rate if VMs fail independently."""
    bound = seen.upper(confidence)
    told = f"{seen.bad} of {_units(seen)} failed{f', and {_count(hosts, _NAMES[HOST])}' if hosts else ''}"
    text = f"{told}; none may. What was seen goes with any rate below {_percent(bound)} {_at(confidence)}"
    if verdict == INCONCLUSIVE:
        text = "no VM was upgraded and none was on the build already: nothing was proved"
    elif not seen.units and verdict == PASS:
        text = "nothing had to move, so nothing failed"
    return Check(
        check="failure_rate",
        subject=ALL,
        verdict=verdict,
        n=seen.units,
        unit=seen.unit,
        observed=seen.rate,
        bound=bound,
        limit=0.0,
        confidence=confidence,
        n_needed=None,
        text=text,
    )


def health_told(worse: int, vms: int, fails: bool, unsoaked: Sequence[str], soak_s: float) -> Check:
    """How many VMs got worse, ``fails`` being whether that alone fails the wave, and whether they ran long enough to tell."""
    text = f"{worse} of {_count(vms, _NAMES[VM])} less healthy than before"
    verdict = PASS
    if worse and fails:
        verdict = FAIL
    elif worse:
        text += "; judged as failures or by comparison"
    if soak_s and unsoaked:
        verdict = verdict if verdict == FAIL else INCONCLUSIVE
        text += f"; {', '.join(unsoaked)} did not run for {soak_s:g} s before the last look"
    elif soak_s:
        text += f", after at least {soak_s:g} s on the new build"
    return Check(
        check="health",
        subject=ALL,
        verdict=verdict,
        n=vms,
        unit=VM,
        observed=worse / vms if vms else 0.0,
        bound=None,
        limit=0.0 if fails else None,
        confidence=None,
        n_needed=None,
        text=text,
    )


def watch_told(text: str, vms: int) -> Check:
    """How well the wave was watched. What was seen that stops a rollout is a hard stop."""
    return Check(
        check="watch",
        subject=ALL,
        verdict=PASS,
        n=vms,
        unit=VM,
        observed=None,
        bound=None,
        limit=None,
        confidence=None,
        n_needed=None,
        text=text,
    )


def failure_rate(wave: Sample, so_far: Sample, limit: float, confidence: float) -> Check:
    """The rate has to be shown to be at most ``limit``; see ``_decide``."""
    found = _decide(wave, so_far, limit, confidence)
    seen, bound = found.seen, found.bound
    told = f"{seen.bad} of {_units(seen)} failed"
    asked = f"at most {_percent(limit)} is asked for {_at(confidence)}"
    texts = {
        PASS: f"{told}: the rate is below {_percent(bound)}, {asked}",
        FAIL: f"{told}: the rate is above {_percent(bound)}, {asked}",
        INCONCLUSIVE: f"{told}: that shows a rate below {_percent(bound)}, {asked}; {_needs(found.needed, seen)}",
    }
    return Check(
        check="failure_rate",
        subject=ALL,
        verdict=found.verdict,
        n=seen.units,
        unit=seen.unit,
        observed=seen.rate,
        bound=bound,
        limit=limit,
        confidence=confidence,
        n_needed=found.needed,
        text=texts[found.verdict] if so_far.units else "nothing had to move, so nothing failed",
    )


def minimum(vms: int, least: int) -> Check:
    """Too few VMs have moved for a judgement."""
    return Check(
        check="failure_rate",
        subject=ALL,
        verdict=INCONCLUSIVE,
        n=vms,
        unit=VM,
        observed=None,
        bound=None,
        limit=None,
        confidence=None,
        n_needed=least,
        text=f"{_count(vms, 'VM')} had to move so far, {least} are asked for before a wave is judged",
    )


def downtime_told(subject: str, pauses: Pauses, budget_ms: float | None, verdict: str, confidence: float) -> Check:
    """Each measured pause was held against its budget already; what they show of all others, if VMs are independent."""
    values, units = worst_of(pauses, INDEPENDENT)
    bounds = {quantile: quantile_bound(values, units, quantile, confidence) for quantile in _TOLD_QUANTILES}
    shown = next((quantile for quantile, bound in bounds.items() if bound is not None), None)
    told = f"{_count(len(values), 'pause')} measured, the longest {_ms(max(values, default=None))}"
    if shown is None:
        told += f"; too few to say anything of others, p50 takes {_needed_for(units, 0.5, confidence)}"
    else:
        told += f"; p{shown * 100:g} is at most {_ms(bounds[shown])} {_at(confidence)}"
        beyond = next((quantile for quantile in reversed(_TOLD_QUANTILES) if quantile > shown), None)
        told += (
            f", nothing is shown of p{beyond * 100:g}, which takes {_needed_for(units, beyond, confidence)}"
            if beyond
            else ""
        )
    return Check(
        check="downtime",
        subject=subject,
        verdict=verdict,
        n=len(values),
        unit=units.unit,
        observed=max(values, default=None),
        bound=bounds[shown] if shown else None,
        limit=budget_ms,
        confidence=confidence,
        n_needed=None,
        text=told,
    )


def downtime_quantile(
    subject: str, wave: Pauses, so_far: Pauses, budget_ms: float, policy: GatePolicy, confidence: float
) -> Check:
    """The quantile has to be shown to be within the budget; see ``_decide``. A pause not measured counts as an infinite one."""
    quantile = policy.downtime_quantile or 0.5
    values, units = worst_of(so_far, policy)
    found = _decide(_over(wave, budget_ms, policy), _over(so_far, budget_ms, policy), 1 - quantile, confidence)
    bound = quantile_bound(values, units, quantile, confidence)
    name = f"p{quantile * 100:g}"
    told = f"the pause of {found.seen.bad} of {_units(found.seen)} was over the budget of {budget_ms:g} ms"
    asked = f"{name} within it is asked for {_at(confidence)}"
    texts = {
        PASS: f"{told}: {name} is at most {_ms(bound)}, {asked}",
        FAIL: f"{told}: {name} is over it, {asked}",
        INCONCLUSIVE: f"{told}: that decides nothing, {asked}; {_needs(found.needed, found.seen)}",
    }
    return Check(
        check="downtime",
        subject=subject,
        verdict=found.verdict,
        n=found.seen.units,
        unit=units.unit,
        observed=max((value for value in values if value != math.inf), default=None),
        bound=bound,
        limit=budget_ms,
        confidence=confidence,
        n_needed=found.needed,
        text=texts[found.verdict],
    )


def comparison(upgraded: Sample, others: Sample, margin: float, confidence: float) -> Check:
    """The upgraded must be shown to get worse at most ``margin`` more often than those which were not touched meanwhile.

    Both rates get half of the doubt, so the bound on their difference holds for samples of any size. Not being able to tell
    them apart is no PASS.
    """
    half = 1 - (1 - confidence) / 2
    upper = upgraded.upper(half) - others.lower(half)
    lower = upgraded.lower(half) - others.upper(half)
    told = (
        f"{upgraded.bad} of {_units(upgraded)} that were upgraded got worse, and {others.bad} of {_units(others)} that were "
        "not in the same time"
    )
    asked = f"at most {_percent(margin)} more is asked for {_at(confidence)}"
    needed = None
    if upper <= margin:
        verdict, text = PASS, f"{told}: at most {_percent(upper)} more, {asked}"
    elif lower > margin:
        verdict, text = FAIL, f"{told}: at least {_percent(lower)} more, {asked}"
    else:
        needed = _size_to_compare(upgraded, others, margin, half)
        verdict, text = INCONCLUSIVE, f"{told}: up to {_percent(upper)} more, {asked}; {_needs(needed, upgraded)}"
    return Check(
        check="comparison",
        subject=ALL,
        verdict=verdict,
        n=upgraded.units,
        unit=upgraded.unit,
        observed=upgraded.rate - others.rate,
        bound=lower if verdict == FAIL else upper,
        limit=margin,
        confidence=confidence,
        n_needed=needed,
        text=text,
    )


def _size_to_compare(upgraded: Sample, others: Sample, margin: float, half: float) -> int | None:
    """How many upgraded it takes at the rates that were seen, with the others growing along; None where it stays open."""
    if not upgraded.units or not others.units:
        return None

    def decided(units: int) -> bool:
        factor = units / upgraded.units
        more, rest = upgraded.times(factor), others.times(factor)
        return more.upper(half) - rest.lower(half) <= margin or more.lower(half) - rest.upper(half) > margin

    if abs(upgraded.rate - others.rate - margin) < 1e-3:
        return None
    return smallest_size(decided, upgraded.units)


@dataclass(frozen=True)
class _Decision:
    """A verdict on a rate, the sample it is by, the bound on its rate, and how many units would decide it."""

    verdict: str
    seen: Sample
    bound: float
    needed: int | None = None


def _decide(wave: Sample, so_far: Sample, limit: float, confidence: float) -> _Decision:
    """Whether a rate is at most ``limit``, by all waves so far.

    It is not, once the wave alone or all so far shows that it is above: a wave of other hardware must not hide in the sum.
    These two looks share the doubt that is allowed.
    """
    looks = [so_far] if wave == so_far else [wave, so_far]
    each = 1 - (1 - confidence) / len(looks)
    for seen in looks:
        if seen.shows_above(limit, each):
            return _Decision(FAIL, seen, seen.lower(each))
    upper = so_far.upper(confidence)
    if not so_far.units or so_far.shows_below(limit, confidence):
        return _Decision(PASS, so_far, upper)
    return _Decision(INCONCLUSIVE, so_far, upper, so_far.units_to_show_below(limit, confidence))


def _over(pauses: Pauses, budget_ms: float, policy: GatePolicy) -> Sample:
    return sample_of({host: [value > budget_ms for value in values] for host, values in pauses.items()}, policy)


def _needs(needed: int | None, seen: Sample) -> str:
    if needed is None:
        return "no sample that there could be decides it"
    return f"{_count(needed, _NAMES[seen.unit])} in all would show it if no other was bad"


def _needed_for(units: Sample, quantile: float, confidence: float) -> int | None:
    return replace(units, bad=0).units_to_show_below(1 - quantile, confidence)


_NAMES = {HOST: "host", VM: "VM"}


def _units(seen: Sample) -> str:
    alike = f" (worth {seen.units * seen.weight:.1f}, for those of a host are alike)" if seen.weight < 1 else ""
    return f"{_count(seen.units, _NAMES[seen.unit])}{alike}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _at(confidence: float) -> str:
    return f"({confidence * 100:.3g} % confidence)"


def _percent(rate: float) -> str:
    return f"{rate * 100:.3g} %"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
