# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds against published tables, against exact arithmetic, and against what they promise: their coverage."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import (
    incomplete_beta,
    lower_failure_bound,
    shows_below,
    smallest_size,
    upper_failure_bound,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import HOST, VM, GatePolicy
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.sample import (
    Sample,
    quantile_bound,
    sample_of,
    worst_of,
)


def binomial_cdf(most: int, trials: int, rate: Fraction) -> Fraction:
    """P(X <= most), exactly."""
    return sum(
        (math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(most + 1)), start=Fraction(0)
    )


@pytest.mark.parametrize(
    ("failures", "attempts", "lower", "upper"),
    [
        # two-sided 95 %: the manual page of R's binom.test (Mendel's peas)
        (682, 925, 0.7076683, 0.7654066),
        # exact intervals as tables of the Clopper-Pearson interval have them
        (3, 20, 0.0321, 0.3789),
        (42, 100, 0.3220, 0.5229),
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
    ],
)
def test_both_bounds_together_are_the_published_interval(
    failures: int, attempts: int, lower: float, upper: float
) -> None:
    digits = 7 if attempts == 925 else 4
    assert round(lower_failure_bound(failures, attempts, 0.975), digits) == pytest.approx(lower, abs=1e-12)
    assert round(upper_failure_bound(failures, attempts, 0.975), digits) == pytest.approx(upper, abs=1e-12)


def test_lower_bound_is_that_of_scipys_manual() -> None:
    """scipy.stats.binomtest(k=3, n=15, p=0.1, alternative='greater').proportion_ci()."""
    assert lower_failure_bound(3, 15, 0.95) == pytest.approx(0.05684686759024681, rel=1e-12)


@pytest.mark.parametrize("rank", range(1, 7))
@pytest.mark.parametrize(
    ("quantile", "sizes"),
    [
        # Wilks' sample sizes for 95/95, as in the tables of Somerville (1958)
        (0.95, (59, 93, 124, 153, 181, 208)),
        # CMH-17 (MIL-HDBK-17) B-basis, 90/95, and A-basis, 99/95
        (0.90, (29, 46, 61, 76, 89, 103)),
        (0.99, (299, 473, 628, 773, 913, 1049)),
    ],
)
def test_order_statistics_are_those_of_published_tables(quantile: float, sizes: tuple[int, ...], rank: int) -> None:
    """With that many values, and not with one less, the rank-th largest is a bound on the quantile."""
    size = sizes[rank - 1]
    values = [float(value) for value in range(1, size + 1)]

    assert quantile_bound(values, Sample(0, size), quantile, 0.95) == float(size + 1 - rank)
    one_less = quantile_bound(values[1:], Sample(0, size - 1), quantile, 0.95)
    assert one_less == (None if rank == 1 else float(size + 2 - rank))


@pytest.mark.parametrize(("size", "bound"), [(4, None), (5, 5.0), (8, 7.0)])
def test_a_small_canary_bounds_the_median_at_most(size: int, bound: float | None) -> None:
    values = [float(value) for value in range(1, size + 1)]

    assert quantile_bound(values, Sample(0, size), 0.5, 0.95) == bound
    assert quantile_bound(values, Sample(0, size), 0.99, 0.95) is None


@pytest.mark.parametrize("attempts", [1, 2, 7, 30, 59])
@pytest.mark.parametrize("rate", [Fraction(1, 100), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)])
def test_incomplete_beta_is_the_binomial_tail(attempts: int, rate: Fraction) -> None:
    for failures in range(attempts):
        exact = 1 - binomial_cdf(failures, attempts, rate)
        assert incomplete_beta(float(rate), failures + 1, attempts - failures) == pytest.approx(float(exact), rel=1e-10)


def test_incomplete_beta_of_what_is_no_whole_number_is_that_of_a_closed_form() -> None:
    """I_x(a, 1) = x^a, I_x(1/2, 1/2) = 2/pi asin(sqrt x): fractions are what samples of VMs that are alike come to."""
    for x in (0.001, 0.3, 0.77, 0.999):
        assert incomplete_beta(x, 2.5, 1) == pytest.approx(x**2.5, rel=1e-12)
        assert incomplete_beta(x, 0.5, 0.5) == pytest.approx(2 / math.pi * math.asin(math.sqrt(x)), rel=1e-12)
    assert (incomplete_beta(0.0, 2, 3), incomplete_beta(1.0, 2, 3)) == (0.0, 1.0)


@pytest.mark.parametrize("attempts", [5, 20])
@pytest.mark.parametrize("rate", [Fraction(1, 50), Fraction(1, 10), Fraction(1, 3)])
def test_the_bound_holds_as_often_as_it_promises(attempts: int, rate: Fraction) -> None:
    """The exact probability of samples whose bound is below the true rate is at most 5 %."""
    misled = sum(
        (
            math.comb(attempts, k) * rate**k * (1 - rate) ** (attempts - k)
            for k in range(attempts + 1)
            if upper_failure_bound(k, attempts, 0.95) < rate
        ),
        start=Fraction(0),
    )
    assert misled <= Fraction(5, 100)


@pytest.mark.parametrize(("rate", "size"), [(0.05, 59), (0.01, 299), (0.5, 5), (0.1, 29)])
def test_how_many_it_takes(rate: float, size: int) -> None:
    assert Sample(0, 0).units_to_show_below(rate, 0.95) == size
    assert shows_below(0, size, rate, 0.95)
    assert not shows_below(0, size - 1, rate, 0.95)


def test_no_size_is_enough_for_what_cannot_be_shown() -> None:
    assert smallest_size(lambda _size: False) is None


class TestAlike:
    BY_HOST = {"h1": [False] * 10, "h2": [False] * 9 + [True], "h3": []}

    def test_hosts_are_units_whatever_is_on_them(self) -> None:
        assert sample_of(self.BY_HOST, GatePolicy()) == Sample(1, 2, HOST)

    @pytest.mark.parametrize(("correlation", "worth"), [(0.0, 20.0), (0.1, 20 / 1.9), (1.0, 2.0)])
    def test_vms_are_worth_the_less_the_more_they_are_alike(self, correlation: float, worth: float) -> None:
        """n / (1 + (m - 1) r): from all of them to one per host."""
        sample = sample_of(self.BY_HOST, GatePolicy(unit=VM, correlation=correlation))

        assert (sample.bad, sample.units, sample.units * sample.weight) == (1, 20, pytest.approx(worth))

    def test_a_crowded_host_counts_for_more_neighbours(self) -> None:
        """With 1 and 19 VMs on two hosts a VM has (1 + 361) / 20 on its host, not 10."""
        uneven = sample_of({"h1": [False], "h2": [False] * 19}, GatePolicy(unit=VM, correlation=1.0))

        assert uneven.units * uneven.weight == pytest.approx(20 / 18.1)

    def test_the_bound_of_vms_that_are_alike_is_wider(self) -> None:
        bounds = [
            sample_of({f"h{n}": [False] * 10 for n in range(6)}, GatePolicy(unit=VM, correlation=rho)).upper(0.95)
            for rho in (0.0, 0.2, 1.0)
        ]

        assert bounds[0] == pytest.approx(upper_failure_bound(0, 60))
        assert bounds == sorted(bounds)
        assert bounds[2] == pytest.approx(upper_failure_bound(0, 6))

    def test_the_pause_of_a_host_is_its_longest(self) -> None:
        values, units = worst_of({"h1": [1.0, 9.0], "h2": [3.0], "h3": []}, GatePolicy())

        assert (values, units) == ([3.0, 9.0], Sample(0, 2, HOST))
