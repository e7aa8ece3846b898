# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module vm_info returns, and whether its documentation has all of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory, VfioUse, Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_host import (
    GroupMember,
    IommuGroup,
    VfioDevice,
    VfioHost,
    VfioUser,
    look_at_host,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_kernel import VfioKernel
from ansible_collections.vmm.live_upgrade.plugins.modules import vm_info
from ansible_collections.vmm.live_upgrade.tests.vfio_world import VfioWorld

RETURNED: dict[str, Any] = yaml.safe_load(vm_info.RETURN)
VM = Vm("web1", 70, 1, "/q", False, None, None, "11.1.1", ["/q"], None, None, 0, 0)


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_returns_vms_and_what_the_host_has_for_vfio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users of devices bear the names of all VMs, also of those that were not asked for."""
    world = VfioWorld(tmp_path / "root")
    world.add_device("0000:01:00.0", "vfio-pci", "12")
    world.add_process(70, "/dev/vfio/12")

    def look(vm_name: Callable[[int], str | None]) -> VfioHost:
        return look_at_host(vm_name, world.root)

    other = dataclasses.replace(VM, name="web2", pid=71)
    monkeypatch.setattr(vm_info, "discover", lambda: [VM, other])
    monkeypatch.setattr(vm_info, "look_at_host", look)
    with patch_module_args({"vms": ["web2"], "state_dir": str(tmp_path)}), pytest.raises(SystemExit):
        vm_info.main()
    told = json.loads(capsys.readouterr().out)

    assert [vm["name"] for vm in told["vms"]] == ["web2"]
    assert told["vfio"]["devices"][0]["users"] == [{"pid": 70, "vm": "web1"}]
    assert set(told["vms"][0]) == set(RETURNED["vms"]["contains"])
    assert told["changed"] is False


@pytest.mark.parametrize(
    "documented,kind",
    [
        (RETURNED["vfio"], VfioHost),
        (RETURNED["vfio"]["contains"]["kernel"], VfioKernel),
        (RETURNED["vfio"]["contains"]["devices"], VfioDevice),
        (RETURNED["vfio"]["contains"]["groups"], IommuGroup),
        (RETURNED["vms"]["contains"]["vfio"], VfioUse),
        (RETURNED["vms"]["contains"]["locked_memory"], LockedMemory),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_documentation_has_every_field(documented: dict[str, Any], kind: type) -> None:
    assert set(documented["contains"]) == fields(kind)


def test_the_documentation_names_what_is_in_lists() -> None:
    devices, groups = (RETURNED["vfio"]["contains"][name]["contains"] for name in ("devices", "groups"))

    assert all(f"C({name})" in str(devices["users"]["description"]) for name in fields(VfioUser))
    assert all(f"C({name})" in str(groups["members"]["description"]) for name in fields(GroupMember))
