# SPDX-License-Identifier: GPL-3.0-or-later
"""A short soak: ``make soak-vfork`` does two hundred hops."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.vmm.live_upgrade.tests.integration.load.soak import Soak

HOPS = 6


def test_guest_at_work_goes_back_and_forth(qemu_old: Path, qemu_new: Path, tmp_path: Path) -> None:
    report = Soak((qemu_old, qemu_new), tmp_path, HOPS, print).run()

    assert report.failures == []
    assert report.hops == HOPS
    assert report.records_on_disk_verified > 0 and report.network_bytes > 0
