# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs and hosts as a sample: how many units were seen, how many were bad, and what that shows. PRIVATE to the collection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import (
    lower_failure_bound,
    shows_below,
    smallest_size,
    upper_failure_bound,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import HOST, VM, GatePolicy

INDEPENDENT = GatePolicy(unit=VM, correlation=0.0)
"""Each VM for itself: what is told where nothing is demanded."""


@dataclass(frozen=True)
class Sample:
    """``bad`` of ``units``, each a VM or a host; a unit counts as ``weight`` independent ones."""

    bad: int
    units: int
    unit: str = VM
    weight: float = 1.0

    @property
    def rate(self) -> float:
        """The share that was bad, 0 of nothing."""
        return self.bad / self.units if self.units else 0.0

    def upper(self, confidence: float) -> float:
        """Return the largest rate that goes with what was seen."""
        return upper_failure_bound(self.bad * self.weight, self.units * self.weight, confidence)

    def lower(self, confidence: float) -> float:
        """Return the smallest rate that goes with what was seen."""
        return lower_failure_bound(self.bad * self.weight, self.units * self.weight, confidence)

    def shows_below(self, rate: float, confidence: float) -> bool:
        """Whether the true rate is at most ``rate``."""
        return shows_below(self.bad * self.weight, self.units * self.weight, rate, confidence)

    def shows_above(self, rate: float, confidence: float) -> bool:
        """Whether the true rate is above ``rate``."""
        good = self.units - self.bad
        return self.bad > 0 and shows_below(good * self.weight, self.units * self.weight, 1 - rate, confidence)

    def units_to_show_below(self, rate: float, confidence: float) -> int | None:
        """Return how many units it takes when no other one turns out bad."""

        def enough(units: int) -> bool:
            return shows_below(self.bad * self.weight, units * self.weight, rate, confidence)

        return smallest_size(enough, max(self.bad + 1, 1))

    def times(self, factor: float) -> Sample:
        """Return the sample as if it were larger by ``factor``, with the same rate."""
        return Sample(self.bad, self.units, self.unit, self.weight * factor)

    def plus(self, other: Sample) -> Sample:
        """Return both as one, for samples of the same kind of unit; the more careful weight is taken."""
        return Sample(self.bad + other.bad, self.units + other.units, self.unit, min(self.weight, other.weight))


def sample_of(bad_by_host: Mapping[str, Sequence[bool]], policy: GatePolicy) -> Sample:
    """Return the sample that the VMs are, given per host whether each was bad.

    By the unit host, a host is bad when any of its VMs is. By the unit vm, VMs of one host that are alike with correlation r
    are worth n / (1 + (m - 1) r) that are not, m being how many neighbours a VM has on average, itself included.
    """
    sizes = [len(flags) for flags in bad_by_host.values() if flags]
    if policy.unit == HOST:
        return Sample(sum(any(flags) for flags in bad_by_host.values()), len(sizes), HOST)
    bad = sum(sum(flags) for flags in bad_by_host.values())
    neighbours = sum(size * size for size in sizes) / sum(sizes) if sizes else 1.0
    return Sample(bad, sum(sizes), VM, 1 / (1 + (neighbours - 1) * (policy.correlation or 0.0)))


def worst_of(values_by_host: Mapping[str, Sequence[float]], policy: GatePolicy) -> tuple[list[float], Sample]:
    """Return the value of each unit, sorted, and the units as a sample in which none is bad yet."""
    none_bad = sample_of({host: [False] * len(values) for host, values in values_by_host.items()}, policy)
    if policy.unit == HOST:
        return sorted(max(values) for values in values_by_host.values() if values), none_bad
    return sorted(_flat(values_by_host.values())), none_bad


def quantile_bound(values: Sequence[float], units: Sample, quantile: float, confidence: float) -> float | None:
    """Return the smallest of the sorted ``values`` that the quantile is shown not to exceed; None when it takes more of them.

    It is an order statistic, so nothing is assumed of how the values are spread. For n that are independent it is the
    smallest x(k) with P(B(n, quantile) < k) >= confidence.
    """

    def shown(above: int) -> bool:
        return Sample(above, units.units, units.unit, units.weight).shows_below(1 - quantile, confidence)

    if not values or not shown(0):
        return None
    low, high = 0, len(values)  # as many values may be above it: shown for low, not for high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shown(middle) else (low, middle)
    bound = values[len(values) - 1 - low]
    return None if math.isinf(bound) else bound


def _flat(groups: Iterable[Sequence[float]]) -> list[float]:
    return [value for group in groups for value in group]
