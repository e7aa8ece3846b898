# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator asks of the gate (``upgrade_gate``), read and checked. PRIVATE to the collection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import CONFIDENCE

PAUSE, GROW, GO_ON = "pause", "grow", "pass"
HOST, VM = "host", "vm"


@dataclass(frozen=True)
class GatePolicy:
    """How waves are judged. By default any failure fails the wave, and nothing is demanded of the size of the sample.

    ``max_failure_rate``: what has to be shown, in place of no failure at all. ``downtime_quantile``: the share of pauses that
    has to be shown to be within the budget, in place of each measured one. ``margin``: by how much the share of upgraded VMs
    whose health got worse may be above that of VMs on ``controls`` hosts that are yet to be upgraded. ``unit``: what counts as
    independent. ``correlation``: of VMs on one host, for the unit vm. ``grow_limit``: the largest share of the hosts that waves
    which proved nothing may come to.
    """

    max_failure_rate: float | None = None
    downtime_quantile: float | None = None
    margin: float | None = None
    controls: int = 0
    confidence: float = CONFIDENCE
    unit: str = HOST
    correlation: float | None = None
    min_vms: int = 0
    soak_s: int = 0
    on_inconclusive: str = PAUSE
    grow_limit: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data that ``parse_policy`` takes back."""
        return asdict(self)


def parse_policy(asked: Mapping[str, Any] | None) -> GatePolicy:
    """Return the policy that ``upgrade_gate`` asks for. Raises ``AnsibleError`` for what cannot be meant."""
    if asked is not None and not isinstance(asked, Mapping):
        raise _error(f"is {asked!r}, not a dictionary such as {{'max_failure_rate': 0.05}}")
    values = {str(key): value for key, value in (asked or {}).items() if value is not None}
    known = [field.name for field in fields(GatePolicy)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise _error(f"has {', '.join(unknown)}, which it does not know; it takes {', '.join(known)}")
    default = GatePolicy()
    policy = GatePolicy(
        max_failure_rate=_share(values, "max_failure_rate", None),
        downtime_quantile=_share(values, "downtime_quantile", None),
        margin=_share(values, "margin", None),
        controls=_count(values, "controls"),
        confidence=_share(values, "confidence", default.confidence) or default.confidence,
        unit=_choice(values, "unit", (HOST, VM), default.unit),
        correlation=_correlation(values),
        min_vms=_count(values, "min_vms"),
        soak_s=_count(values, "soak_s"),
        on_inconclusive=_choice(values, "on_inconclusive", (PAUSE, GROW, GO_ON), default.on_inconclusive),
        grow_limit=_number(values, "grow_limit") if "grow_limit" in values else default.grow_limit,
    )
    _require_consistent(policy)
    return policy


def _require_consistent(policy: GatePolicy) -> None:
    if policy.confidence < 0.5:
        raise _error(f"has confidence {policy.confidence:g}; below 0.5 the opposite would be more likely")
    if not 0 < policy.grow_limit <= 1:
        raise _error(f"has grow_limit {policy.grow_limit:g}; it is a share of the hosts, above 0 and at most 1")
    if policy.unit == VM and policy.correlation is None:
        raise _error(
            "has the unit vm without a correlation. Say how alike VMs of one host are: 0 (as if on hosts of their own) to 1 "
            "(as if they were one); or take the unit host, which assumes nothing"
        )
    if policy.unit == HOST and policy.correlation is not None:
        raise _error("has a correlation with the unit host, which needs none; leave it out, or add unit: vm")
    if (policy.margin is None) != (policy.controls == 0):
        raise _error(
            "needs margin and controls together: on how many hosts that are not upgraded yet VMs are looked at, and how much "
            "worse than those the upgraded may be"
        )


def _share(values: Mapping[str, Any], name: str, default: float | None) -> float | None:
    if name not in values:
        return default
    number = _number(values, name)
    if not 0 < number < 1:
        raise _error(f"has {name} {values[name]!r}; it is a share between 0 and 1, such as 0.05 for 5 %")
    return number


def _correlation(values: Mapping[str, Any]) -> float | None:
    if "correlation" not in values:
        return None
    number = _number(values, "correlation")
    if not 0 <= number <= 1:
        raise _error(f"has correlation {values['correlation']!r}; it is from 0 to 1")
    return number


def _count(values: Mapping[str, Any], name: str) -> int:
    number = _number(values, name) if name in values else 0.0
    if number < 0 or number != int(number):
        raise _error(f"has {name} {values[name]!r}; it is a whole number, 0 or more")
    return int(number)


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise _error(f"has {name} {value!r}, which is no number") from None
    if not math.isfinite(number):
        raise _error(f"has {name} {value!r}, which is no number")
    return number


def _choice(values: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = values.get(name, default)
    if value not in choices:
        raise _error(f"has {name} {value!r}; it is one of {', '.join(choices)}")
    return str(value)


def _error(what: str) -> AnsibleError:
    return AnsibleError(f"upgrade_gate {what}. Nothing was touched")
