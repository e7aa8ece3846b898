# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests of the migration mode cpr-vfork: ``vm``, and ``start`` for one with options. See ``vfork_vm.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import Vm, VmFactory


@pytest.fixture
def start(start_qemu: QemuFactory, qemu_old: Path) -> Iterator[VmFactory]:
    """Start a VM, on the older build unless told otherwise."""
    factory = VmFactory(start_qemu, qemu_old)
    yield factory
    factory.close()


@pytest.fixture
def vm(start: VmFactory) -> Vm:
    return start()
