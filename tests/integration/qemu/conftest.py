# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests of the migration mode cpr-vfork: ``vm``, and ``start`` for one with options. See ``vfork_vm.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import MACHINE, NIC, Vm


@pytest.fixture
def start(start_qemu: QemuFactory, qemu_old: Path) -> Iterator[Callable[..., Vm]]:
    """Start a VM, on the older build unless told otherwise."""
    vms = []

    def make(binary: Path = qemu_old, **options: Any) -> Vm:
        vm = Vm(start_qemu(binary=binary, machine=MACHINE, **{"extra": NIC, **options}))
        vms.append(vm)
        if options.get("shared_ram", True):
            vm.qemu.wait_counting()
        return vm

    yield make
    for vm in vms:
        vm.monitor.close()


@pytest.fixture
def vm(start: Callable[..., Vm]) -> Vm:
    return start()
