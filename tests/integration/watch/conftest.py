# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: a real sshd on loopback, a watcher as a rollout starts it, and VMs with a monitor to spare."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import CACHE

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch import watcher_control
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher_control import WatcherControl
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import VmFactory
from ansible_collections.vmm.live_upgrade.tests.integration.watch.running_watcher import RunningWatcher
from ansible_collections.vmm.live_upgrade.tests.integration.watch.sshd import Sshd


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """Yield an sshd that runs."""
    daemon = Sshd(tmp_path / "sshd", CACHE)
    daemon.start()
    yield daemon
    daemon.kill()


@pytest.fixture
def watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWatcher]:
    """Yield a watcher; its rollout is a process that does nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(watcher_control, "_START_S", 300.0)
    owner = subprocess.Popen(["sleep", "600"])
    running = RunningWatcher(WatcherControl(tmp_path / "rollouts" / "upgrade-20260101T000000Z-abcdef.jsonl"), owner)
    yield running
    running.end()


@pytest.fixture
def start(start_qemu: QemuFactory, qemu_old: Path) -> Iterator[VmFactory]:
    """Start a VM, on the older build."""
    factory = VmFactory(start_qemu, qemu_old)
    yield factory
    factory.close()
