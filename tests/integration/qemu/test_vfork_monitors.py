# SPDX-License-Identifier: GPL-3.0-or-later
"""What the monitors of a QEMU tell of the mode cpr-vfork, and how a hand-over is made by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import Vm


def test_human_monitor_hands_over_and_tells(vm: Vm, qemu_new: Path) -> None:
    def hmp(line: str) -> str:
        return str(vm.monitor.execute("human-monitor-command", {"command-line": line}))

    assert "idle, may run the guest: old" in hmp("info cpr_vfork")
    assert "Hand-over" not in hmp("info migrate")
    command = vm.command(qemu_new)
    hmp("migrate_set_parameter mode cpr-vfork")
    hmp(f"migrate_set_parameter cpr-exec-command {' '.join(command)}")
    assert hmp("cpr_vfork_set -r 2000 30000") == ""
    vm.monitor.drain_events()
    assert hmp("migrate -d") == ""
    info = vm.end()

    assert (info["phase"], info["rehearsal"]) == ("aborted", True)
    for line in ("info cpr_vfork", "info migrate"):
        said = hmp(line)
        assert "aborted, may run the guest: old, rehearsal" in said
        assert f"process {info['child-pid']}" in said
        assert "it was a rehearsal" in said
        assert re.search(r"loaded\s+\d+ us", said)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("0", "0 ms is not possible"),
        ("5000000000", "5000000000 ms is not possible"),
        ("9 9 x", "'x' is not"),
        ("9 9 999", "is not open"),
    ],
)
def test_human_monitor_refuses_nonsense(vm: Vm, arguments: str, why: str) -> None:
    said = vm.monitor.execute("human-monitor-command", {"command-line": f"cpr_vfork_set {arguments}"})

    assert why in said


def test_query_migrate_tells_of_the_hand_over_in_this_mode_only(vm: Vm, qemu_new: Path) -> None:
    assert "cpr-vfork" not in vm.monitor.execute("query-migrate")
    info = vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=loaded:exit")

    told = vm.monitor.execute("query-migrate")["cpr-vfork"]

    assert told == info
    assert (told["phase"], told["owner"]) == ("aborted", "old")
    assert "exited with status 3" in told["reason"]
