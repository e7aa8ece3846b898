# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exact small-sample bounds for canaries. PRIVATE to the collection.

Every bound here is a quantile of a beta distribution. The one special function that needs, the regularized incomplete beta
function, is written out: it does not justify that every controller has to install scipy (docs/dependencies.md).

Counts may be fractions: a sample whose units are alike counts for less than its size (Korn and Graubard 1998 take the
Clopper-Pearson bound of the effective sample so).
"""

from __future__ import annotations

import math
from collections.abc import Callable

CONFIDENCE = 0.95
_BISECTIONS = 60
_TERMS = 20_000
_MOST_UNITS = 10_000_000


def upper_failure_bound(failures: float, attempts: float, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson upper bound on the failure rate (0..1).

    It is the largest rate at which seeing at most ``failures`` in ``attempts`` still has probability ``1 - confidence``.
    Nothing attempted bounds nothing: 1.0. Raises ``ValueError`` for counts that cannot be.
    """
    _require_counts(failures, attempts)
    if failures == attempts:
        return 1.0
    return _smallest_rate(lambda rate: shows_below(failures, attempts, rate, confidence), failures / attempts)


def lower_failure_bound(failures: float, attempts: float, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson lower bound on the failure rate (0..1). See ``upper_failure_bound``."""
    _require_counts(failures, attempts)
    return 1.0 - upper_failure_bound(attempts - failures, attempts, confidence)


def shows_below(failures: float, attempts: float, rate: float, confidence: float) -> bool:
    """Whether the sample shows, at ``confidence``, that the failure rate is at most ``rate``.

    The same as holding ``upper_failure_bound`` against it, without searching for the bound.
    """
    _require_counts(failures, attempts)
    if failures == attempts:
        return rate >= 1.0
    return incomplete_beta(rate, failures + 1, attempts - failures) >= confidence


def smallest_size(enough: Callable[[int], bool], start: int = 1) -> int | None:
    """Return the smallest size from ``start`` on that is ``enough``, which holds for all larger ones, too; None for none."""
    size = start
    while not enough(size):
        size *= 2
        if size > _MOST_UNITS:
            return None
    low = max(start, size // 2)
    while low < size:
        middle = (low + size) // 2
        if enough(middle):
            size = middle
        else:
            low = middle + 1
    return size


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), for positive ``a`` and ``b``.

    Its continued fraction (DLMF 8.17.22) converges quickly below the mean; above it the symmetry I_x(a, b) = 1 - I_1-x(b, a)
    leads there.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction 1 + d1 / (1 + d2 / (1 + ...)), evaluated from its head (modified Lentz)."""
    tiny = 1e-300
    value = numerator = 1.0
    denominator = 0.0
    for term in range(1, _TERMS):
        half = term // 2
        if term % 2:
            d = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            d = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1.0 / ((1.0 + d * denominator) or tiny)
        numerator = (1.0 + d / numerator) or tiny
        step = numerator * denominator
        value *= step
        if abs(step - 1.0) < 1e-14:
            return value
    raise ArithmeticError(f"the incomplete beta function does not converge for x={x}, a={a}, b={b}")


def _smallest_rate(shown: Callable[[float], bool], low: float) -> float:
    high = 1.0
    for _step in range(_BISECTIONS):
        middle = (low + high) / 2
        if shown(middle):
            high = middle
        else:
            low = middle
    return high


def _require_counts(failures: float, attempts: float) -> None:
    if not 0 <= failures <= attempts:
        raise ValueError(f"{failures} failures of {attempts} attempts")
