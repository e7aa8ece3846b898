# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers that want to change the KVM cores of one host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease, LeaseError
from ansible_collections.vmm.live_upgrade.plugins.modules.kvm_core import _leased

OTHER = Claim("rollout-2", "controller-b", 11, 300)


def module(*, trial: bool = False, check_mode: bool = False, **more: Any) -> Any:
    lease = {"token": 10, "owner": "controller-a", "seconds": 300}
    params = {"rollout_id": "rollout-1", "lease": lease, "trial": trial, **more}
    return SimpleNamespace(params=params, check_mode=check_mode)


def test_a_host_is_kept_while_a_core_is_changed_and_free_after(tmp_path: Path) -> None:
    with _leased(module(), tmp_path), pytest.raises(LeaseError, match="it holds this host for"):
        Lease(tmp_path).take(OTHER)
    Lease(tmp_path).take(OTHER)


def test_a_host_is_kept_on_when_a_core_is_on_trial(tmp_path: Path) -> None:
    with _leased(module(trial=True), tmp_path):
        pass
    with pytest.raises(LeaseError, match="it holds this host for"):
        Lease(tmp_path).take(OTHER)


def test_a_host_is_free_when_loading_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), _leased(module(trial=True), tmp_path):
        raise OSError("no room")
    Lease(tmp_path).take(OTHER)


def test_no_core_is_changed_on_a_host_of_another_rollout(tmp_path: Path) -> None:
    Lease(tmp_path).take(OTHER)
    with pytest.raises(LeaseError, match="a later run has taken this host since"), _leased(module(), tmp_path):
        pytest.fail("it went on")


@pytest.mark.parametrize("asked", [module(check_mode=True), module(lease=None)], ids=["check", "none"])
def test_who_changes_nothing_or_names_no_run_takes_no_lease(tmp_path: Path, asked: Any) -> None:
    with _leased(asked, tmp_path):
        Lease(tmp_path).take(OTHER)
