# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exact small-sample bounds for canaries. PRIVATE to the collection."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
_BISECTIONS = 60


def upper_failure_bound(failures: int, attempts: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson upper bound on the failure rate (0..1).

    It is the largest rate at which seeing at most ``failures`` in ``attempts`` still has probability ``1 - confidence``.
    Nothing attempted bounds nothing: 1.0. Raises ``ValueError`` for counts that cannot be.
    """
    if not 0 <= failures <= attempts:
        raise ValueError(f"{failures} failures of {attempts} attempts")
    if failures == attempts:
        return 1.0
    low, high = failures / attempts, 1.0
    for _step in range(_BISECTIONS):
        middle = (low + high) / 2
        if _binomial_cdf(failures, attempts, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes) for X ~ B(trials, rate), in logarithms so that large ``trials`` do not underflow a term."""
    if rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 1.0 if successes >= trials else 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    return math.fsum(
        math.exp(_log_choose(trials, k) + k * log_rate + (trials - k) * log_rest) for k in range(successes + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
