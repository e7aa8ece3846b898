# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers that want to change something on one host that is over at once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease, LeaseError, leased

OTHER = Claim("rollout-2", "controller-b", 11, 300)


def ours(state_dir: Path, keep: bool = False) -> AbstractContextManager[None]:
    return leased(state_dir, "rollout-1", {"token": 10, "owner": "controller-a", "seconds": 300}, keep)


def test_a_host_is_kept_while_it_is_changed_and_free_after(tmp_path: Path) -> None:
    with ours(tmp_path), pytest.raises(LeaseError, match="it holds this host for"):
        Lease(tmp_path).take(OTHER)
    Lease(tmp_path).take(OTHER)


def test_a_host_is_kept_on_for_what_is_to_follow(tmp_path: Path) -> None:
    with ours(tmp_path, keep=True):
        pass
    with pytest.raises(LeaseError, match="it holds this host for"):
        Lease(tmp_path).take(OTHER)


def test_a_host_is_free_when_that_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), ours(tmp_path, keep=True):
        raise OSError("no room")
    Lease(tmp_path).take(OTHER)


def test_nothing_is_changed_on_a_host_of_another_rollout(tmp_path: Path) -> None:
    Lease(tmp_path).take(OTHER)
    with pytest.raises(LeaseError, match="a later run has taken this host since"), ours(tmp_path):
        pytest.fail("it went on")


def test_who_names_no_run_keeps_nobody_out(tmp_path: Path) -> None:
    with leased(tmp_path, "rollout-1", None):
        Lease(tmp_path).take(OTHER)
