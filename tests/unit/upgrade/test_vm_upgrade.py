# SPDX-License-Identifier: GPL-3.0-or-later
"""What one VM's part of a transaction leaves behind when it ends before the hand-over has begun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade import vm_upgrade
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.vm_upgrade import VmUpgrade
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import CommandPlan, HeldClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm


class Monitor:
    """Of a VM without vCPUs."""

    def execute(self, _command: str) -> list[object]:
        return []


@contextmanager
def opened(*_arguments: object) -> Iterator[tuple[Monitor, CommandPlan]]:
    """The VM's monitor answers, and it has a serial console in use."""
    yield Monitor(), CommandPlan(argv=["/qemu"], clients=[HeldClient("console", "/console.sock")])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def upgrade(directory: Path) -> VmResult:
    """This very process is the VM."""
    vm = Vm("web1", os.getpid(), 1, "/q", False, None, None, "11.1.1", ["/q"], None, None, os.geteuid(), os.getegid())
    request = UpgradeRequest(build_id="qemu-11.1.1-0123456789abcdef", run_dir=str(directory / "run"))
    journal = Journal(directory)
    try:
        return VmUpgrade(vm, directory, "vfork", request, directory, journal).run()
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("step", "why"),
    [("pidfd_open", "No such process"), ("chown", "Operation not permitted")],
    ids=["vm-ends-meanwhile", "workspace-not-possible"],
)
def test_no_workspace_is_left_when_nothing_was_begun(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: str, why: str
) -> None:
    seen = []

    def fail(*_arguments: object) -> None:
        seen.extend((directory / "run").glob("*/*"))
        raise OSError(why)

    monkeypatch.setattr(vm_upgrade, "opened_source", opened)
    monkeypatch.setattr(os, step, fail)

    result = upgrade(directory)

    assert (result.outcome, why in str(result.error)) == ("refused", True), result.error
    assert [path.name for path in seen] == ["web1"], "the workspace was there when it failed"
    assert list((directory / "run").glob("*/*")) == []
