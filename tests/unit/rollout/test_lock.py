# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks on the controller, by processes that live, that have gone, and that another container has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have locks in a directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def locks() -> list[str]:
    return sorted(path.stem for path in lock.lock_directory().glob("*.json"))


def in_another_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process look as one of another PID namespace does."""
    monkeypatch.setattr(lock, "_PID_NAMESPACE", "/proc/self/ns/net")


def test_a_host_is_in_one_rollout_at_a_time() -> None:
    lock.acquire("one", {"h1": "10.0.0.1", "h2": "10.0.0.2"}, os.getpid())
    with pytest.raises(
        AnsibleError, match=r"rollout one \(process [0-9]+, since .* is working on other-name; nothing was"
    ):
        lock.acquire("two", {"other-name": "10.0.0.2"}, os.getpid())
    lock.acquire("two", {"h3": "10.0.0.3"}, os.getpid())
    lock.release("one")
    lock.acquire("three", {"h1": "10.0.0.1"}, os.getpid())
    assert locks() == ["three", "two"]


def test_the_lock_of_a_process_that_has_gone_is_void() -> None:
    gone = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    lock.acquire("one", {"h1": "10.0.0.1"}, gone.pid)
    gone.communicate()
    lock.acquire("two", {"h1": "10.0.0.1"}, os.getpid())
    assert locks() == ["two"]


def test_an_owner_that_was_gone_when_it_locked_keeps_nobody_out() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock.acquire("one", {"h1": "10.0.0.1"}, gone.pid)
    lock.acquire("two", {"h1": "10.0.0.1"}, os.getpid())
    assert locks() == ["two"]


def test_a_lock_of_another_container_is_left_to_the_lease_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is not seen from here, which does not make it dead; by its name a host knows it for another controller."""
    lock.acquire("one", {"h1": "10.0.0.1"}, os.getpid())
    here = lock.controller_id()
    assert lock.controller_id() == here
    in_another_container(monkeypatch)
    lock.acquire("two", {"h1": "10.0.0.1"}, os.getpid())
    assert locks() == ["one", "two"]
    assert lock.controller_id() != here
