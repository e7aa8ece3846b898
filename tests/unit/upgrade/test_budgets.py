# SPDX-License-Identifier: GPL-3.0-or-later
"""The longest pause of each VM, by its class."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.budgets import PauseBudget, PauseBudgets
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest

CLASSES = {"web1": "realtime", "reports": "batch"}


@pytest.mark.parametrize(
    ("by_class", "class_of", "vm", "budget"),
    [
        ({}, {}, "web1", PauseBudget(1000)),
        ({}, CLASSES, "web1", PauseBudget(1000)),
        ({"realtime": 20, "batch": 5000}, CLASSES, "web1", PauseBudget(20, "realtime")),
        ({"realtime": "20", "batch": 5000}, CLASSES, "web1", PauseBudget(20, "realtime")),
        ({"realtime": 20, "batch": 5000}, CLASSES, "reports", PauseBudget(5000, "batch")),
        ({"realtime": 20, "batch": 5000}, CLASSES, "db1", PauseBudget(1000)),
        ({"": 5}, {}, "db1", PauseBudget(5, "")),
        ({7: 5}, {"db1": 7}, "db1", PauseBudget(5, "7")),
    ],
    ids="nothing no-budgets of-class word other-class no-class empty-name number".split(),
)
def test_budget_is_that_of_the_class_or_of_all(
    by_class: dict[Any, Any], class_of: dict[str, Any], vm: str, budget: PauseBudget
) -> None:
    assert PauseBudgets(1000, by_class, class_of).of(vm) == budget


@pytest.mark.parametrize("value", [0, -1, 1.5, "1.5", "fast", "", None, True, [5], "\u0665"])
def test_budget_that_is_no_number_of_milliseconds_is_refused(value: Any) -> None:
    with pytest.raises(
        LiveUpgradeError, match="budget of class 'batch' must be a whole number of milliseconds, at least 1"
    ):
        PauseBudgets(1000, {"batch": value}, {})


def test_class_without_a_budget_is_refused_with_what_there_is() -> None:
    with pytest.raises(LiveUpgradeError, match="no budget for class 'realtme' .of VM web1., only for batch, realtime"):
        UpgradeRequest(
            "qemu-11.1.1-0123456789abcdef",
            pause_budgets_ms={"realtime": 20, "batch": 5000},
            vm_classes={"web1": "realtme", "reports": "batch"},
        ).validate()


def test_budgets_are_told_in_words() -> None:
    assert str(PauseBudget(1000)) == "1000 ms"
    assert str(PauseBudget(20, "realtime")) == "20 ms (class realtime)"


def test_requests_with_other_budgets_are_other_requests() -> None:
    plain = UpgradeRequest("qemu-11.1.1-0123456789abcdef")
    classed = UpgradeRequest("qemu-11.1.1-0123456789abcdef", pause_budgets_ms={"batch": 5000})

    assert plain.fingerprint() != classed.fingerprint()
