# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that a person reads when a VM has moved."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.action.vm_upgrade import _outcome


@pytest.mark.parametrize(
    ("values", "line"),
    [
        pytest.param({}, "running on qemu-b, downtime 5.2 ms", id="qemu"),
        pytest.param(
            {"kvm_build_id_before": "kvm-a", "kvm_build_id": "kvm-a"},
            "running on qemu-b, downtime 5.2 ms",
            id="kvm-stays",
        ),
        pytest.param(
            {"kvm_build_id_before": None, "kvm_build_id": "kvm-b"},
            "running on qemu-b and kvm-b, downtime 5.2 ms",
            id="kvm-moves",
        ),
        pytest.param(
            {"kvm_build_id_before": "kvm-a", "kvm_build_id": None},
            "running on qemu-b and another KVM, downtime 5.2 ms",
            id="to-a-core-that-is-not-staged",
        ),
    ],
)
def test_builds_that_have_changed_are_named(values: dict[str, Any], line: str) -> None:
    assert _outcome({"outcome": "upgraded", "new_build_id": "qemu-b", "downtime_ms": 5.23, **values}) == line
