# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The small parts: pauses between tries, which events matter, which monitor may be watched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.backoff import Backoff
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.events import detail, hard_reason
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.monitors import spare_monitor
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import begin_watch, require_watch
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import read_watch


def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.5, 3, chance=lambda: 0)

    assert [backoff.pause_s() for _try in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert backoff.pause_s() == 0.5


def test_chance_shortens_a_pause_by_up_to_a_half() -> None:
    assert Backoff(8, 8, chance=lambda: 1).pause_s() == 4
    assert all(4 <= Backoff(8, 8).pause_s() <= 8 for _try in range(100))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("GUEST_PANICKED", {"action": "pause"}, "the guest crashed"),
        ("GUEST_CRASHLOADED", {"action": "run"}, "the guest crashed"),
        ("BLOCK_IO_ERROR", {"device": "disk0", "operation": "write"}, "disk requests fail"),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}, "the guest crashed"),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, ""),
        ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}, ""),
        ("RESET", {"guest": True, "reason": "guest-reset"}, ""),
        ("STOP", {}, ""),
    ],
)
def test_which_events_stop_a_rollout(name: str, data: dict[str, Any], reason: str) -> None:
    assert hard_reason(name, data) == reason


def test_an_event_in_words() -> None:
    assert detail("STOP", {}) == "STOP"
    assert (
        detail("BLOCK_IO_ERROR", {"device": "", "node-name": "disk0", "nospace": False, "info": {"a": 1}, "n": 3})
        == "BLOCK_IO_ERROR (node-name disk0, nospace no, n 3)"
    )


def monitor(path: str, state: str = "ok", on_host: bool = True) -> dict[str, Any]:
    return {"path": path, "state": state, "on_host": on_host}


@pytest.mark.parametrize(
    ("monitors", "path", "reason"),
    [
        pytest.param([], "", "no QMP monitor", id="none"),
        pytest.param([monitor("/a")], "", "one monitor, which the upgrade needs", id="one"),
        pytest.param([monitor("/a", "busy")], "", "in use by somebody else", id="one-in-use"),
        pytest.param([monitor("/a"), monitor("/b")], "/b", "", id="the-last"),
        pytest.param([monitor("/a"), monitor("/b", "busy"), monitor("/c")], "/c", "", id="the-last-that-is-free"),
        pytest.param([monitor("/a"), monitor("/b"), monitor("/c", "dead")], "/b", "", id="the-last-that-lives"),
        pytest.param([monitor("/a", "busy"), monitor("/b")], "", "one monitor that is not in use", id="one-left"),
        pytest.param([monitor("/a"), monitor("/b", on_host=False)], "", "mount namespace", id="elsewhere"),
    ],
)
def test_which_monitor_is_watched(monitors: list[dict[str, Any]], path: str, reason: str) -> None:
    found, why = spare_monitor(monitors)

    assert found == path
    assert reason in why and bool(why) == (not path)


def test_without_the_library_nothing_is_watched_and_who_demands_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    journal = tmp_path / "upgrade-20260101T000000Z-abcdef.jsonl"

    assert "package paramiko is not there" in begin_watch("auto", journal, os.getpid(), has_ssh=True)
    watch = read_watch(journal)
    assert watch is not None and (watch.watched, "paramiko" in str(watch.reason)) == (False, True)
    require_watch("auto", has_ssh=True)
    with pytest.raises(AnsibleError, match="upgrade_watch is always, but the Python package paramiko"):
        require_watch("always", has_ssh=True)


def test_a_rollout_of_a_version_that_did_not_watch_has_nothing_to_tell(tmp_path: Path) -> None:
    assert read_watch(tmp_path / "upgrade-20260101T000000Z-abcdef.jsonl") is None
