# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptors that a VM was given for devices of the host: a new QEMU gets those that are in use, and no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import Vm

PORT = ["-device", "pcie-root-port,id=port1,chassis=1,slot=1"]


@pytest.fixture(params=["older", "newer"])
def old_binary(request: pytest.FixtureRequest, qemu_old: Path, qemu_new: Path) -> Path:
    return qemu_old if request.param == "older" else qemu_new


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Two descriptors that can be told apart: to be given, they need not be those of devices."""
    pairs = [os.pipe(), os.pipe()]
    yield [reader for reader, _writer in pairs]
    for pair in pairs:
        for number in pair:
            os.close(number)


def _has(pid: int, number: int) -> bool:
    """Whether the process has what ``number`` is here."""
    sought = os.stat(number)
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.path.samestat(link.stat(), sought):
                return True
        except FileNotFoundError:
            continue  # closed meanwhile
    return False


def test_descriptors_of_devices_that_failed_stay_behind(
    start: Callable[..., Vm], old_binary: Path, qemu_new: Path, pipes: list[int]
) -> None:
    """Two tries under one name: the second is no use of what the first has left."""
    vm = start(binary=old_binary, pass_fds=pipes, extra=PORT)
    for number in pipes:
        with pytest.raises(QmpCommandError):
            vm.monitor.execute("device_add", {"driver": "vfio-pci", "id": "h0", "bus": "port1", "fd": str(number)})

    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    assert not [number for number in pipes if _has(info["child-pid"], number)]


def test_an_iommufd_that_was_deleted_stays_behind(
    start: Callable[..., Vm], old_binary: Path, qemu_new: Path, pipes: list[int]
) -> None:
    """Another of the same name is what the new QEMU gets, under the number that it has."""
    first, second = pipes
    vm = start(binary=old_binary, pass_fds=pipes, extra=PORT)
    for number in pipes:
        vm.monitor.execute("object-add", {"qom-type": "iommufd", "id": "iommufd0", "fd": str(number)})
        if number == first:
            vm.monitor.execute("object-del", {"id": "iommufd0"})

    info = vm.hand_over(qemu_new, "-object", f"iommufd,id=iommufd0,fd={second}")

    assert info["phase"] == "running", info
    assert [_has(info["child-pid"], number) for number in pipes] == [False, True]
