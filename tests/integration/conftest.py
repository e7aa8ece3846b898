# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests that run against QEMUs on this machine. See ``local_qemu.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory, qemu_binary, working_accel


@pytest.fixture(scope="session")
def qemu_old() -> Path:
    """Path of a QEMU 10.2."""
    return qemu_binary("10.2")


@pytest.fixture(scope="session")
def qemu_new() -> Path:
    """Path of a QEMU 11.1."""
    return qemu_binary("11.1")


@pytest.fixture(scope="session")
def accel(qemu_new: Path) -> str:
    """The accelerator that really runs a guest on this machine: ``kvm`` or ``tcg``."""
    return working_accel(qemu_new)


@pytest.fixture
def start_qemu(tmp_path: Path, qemu_new: Path, accel: str) -> Iterator[QemuFactory]:
    """``start_qemu(name, binary=..., machine=..., extra=[...])`` starts a VM; all end with the test.

    Without ``binary`` it is an 11.1.
    """
    factory = QemuFactory(tmp_path, qemu_new, accel)
    yield factory
    factory.close()
