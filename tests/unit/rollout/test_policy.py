# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator may ask of the gate, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import GatePolicy, parse_policy


@pytest.mark.parametrize("asked", [None, {}, {"max_failure_rate": None}])
def test_nothing_asked_is_the_default(asked: Any) -> None:
    assert parse_policy(asked) == GatePolicy()


def test_numbers_may_be_text_as_from_the_command_line_and_come_back_from_the_journal() -> None:
    policy = parse_policy({"max_failure_rate": "0.05", "min_vms": "20", "unit": "vm", "correlation": "0", "soak_s": 60})

    assert policy == GatePolicy(max_failure_rate=0.05, min_vms=20, unit="vm", correlation=0.0, soak_s=60)
    assert parse_policy(policy.to_dict()) == policy


REFUSED: dict[str, tuple[Any, str]] = {
    "no dictionary": ("strict", "not a dictionary"),
    "unknown": ({"max_failures": 1}, "has max_failures, which it does not know; it takes max_failure_rate"),
    "percent": ({"max_failure_rate": 5}, "between 0 and 1"),
    "nothing allowed": ({"max_failure_rate": 0}, "between 0 and 1"),
    "no number": ({"max_failure_rate": "few"}, "no number"),
    "not a number": ({"max_failure_rate": float("nan")}, "no number"),
    "truth": ({"min_vms": True}, "no number"),
    "part of a VM": ({"min_vms": 1.5}, "whole number"),
    "endless": ({"soak_s": "inf"}, "no number"),
    "before": ({"soak_s": -1}, "whole number"),
    "quantile in percent": ({"downtime_quantile": 99}, "between 0 and 1"),
    "confidence of nothing": ({"confidence": 0.3}, "below 0.5"),
    "unit": ({"unit": "rack"}, "one of host, vm"),
    "what to do": ({"on_inconclusive": "shrug"}, "one of pause, grow, pass"),
    "VMs without correlation": ({"unit": "vm"}, "without a correlation"),
    "hosts with correlation": ({"correlation": 0.1}, "leave it out"),
    "correlation": ({"unit": "vm", "correlation": 1.5}, "from 0 to 1"),
    "margin alone": ({"margin": 0.1}, "margin and controls together"),
    "controls alone": ({"controls": 2}, "margin and controls together"),
    "no limit": ({"grow_limit": 0}, "grow_limit"),
    "limit": ({"grow_limit": 2}, "grow_limit"),
}


@pytest.mark.parametrize(("asked", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused(asked: Any, reason: str) -> None:
    with pytest.raises(AnsibleError, match=r"upgrade_gate .*Nothing was touched") as caught:
        parse_policy(asked)
    assert reason in str(caught.value)
