# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a core is that somebody loaded and did not live to tell of."""

from __future__ import annotations

import shutil

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.changes import Change, Load
from ansible_collections.vmm.live_upgrade.tests.unit.kmod.conftest import Host, build_id, name

TWO = name(2)
BEGINS, ENDS = f"note that core {TWO} is on trial", f"note that core {TWO} is no longer on trial"


class Killed(BaseException):
    """What no except clause takes."""


def plan(host: Host) -> list[Change]:
    """What it takes to have core 2 on trial beside core 1, which is there."""
    return host.manager.plan_present(build_id(2), default=False, persist=False, trial=True)


@pytest.fixture(autouse=True)
def first_core(host: Host) -> None:
    """Core 1 is loaded, and not on trial."""
    host.present(1)
    assert host.manager.picture().trials == ()


def test_it_is_noted_before_anything_is_loaded(host: Host) -> None:
    changes = plan(host)
    assert [str(change) for change in changes][0] == BEGINS
    predicted = host.manager.picture().after(changes)
    host.manager.apply(changes)
    assert host.manager.picture().trials == predicted.trials == (TWO,)
    assert f"on trial: {TWO}\n" in host.manager.picture().text()


@pytest.mark.parametrize("at", ["before", "after"])
def test_one_who_is_killed_leaves_the_note(host: Host, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = host.kernel.load

    def killed(module: object) -> None:
        if at == "after":
            load(module)  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(host.kernel, "load", killed)
    with pytest.raises(Killed):
        host.manager.apply(plan(host))
    monkeypatch.undo()

    again = plan(host)
    assert BEGINS not in map(str, again)
    assert any(isinstance(change, Load) for change in again) is (at == "before")
    host.manager.apply(again)
    assert host.manager.picture().trials == (TWO,)
    assert plan(host) == []


def test_a_load_that_fails_takes_the_note_along(host: Host) -> None:
    host.kernel.fails = {f"kvm_core_{TWO}"}
    before = host.manager.picture()
    with pytest.raises(LiveUpgradeError, match="KVM is as it was before"):
        host.manager.apply(plan(host))
    assert host.manager.picture() == before


def test_a_core_that_was_there_is_not_on_trial(host: Host) -> None:
    host.present(2)
    assert plan(host) == []
    assert host.manager.picture().trials == ()


@pytest.mark.parametrize("ending", ["present", "default", "absent", "absent-already"])
def test_the_trial_ends(host: Host, ending: str) -> None:
    host.manager.apply(plan(host))
    if ending == "absent-already":  # the note of one who was killed before he loaded it
        shutil.rmtree(host.root / "sys/module" / f"kvm_core_{TWO}")
        host.kernel.cores([core for core in host.kernel.listed() if core[0] != TWO])
    done = host.present(2, default=ending == "default") if "absent" not in ending else host.absent(2)
    assert done[-1] == ENDS
    assert host.manager.picture().trials == ()
    assert BEGINS not in (host.present(2))


def test_a_default_that_cannot_be_chosen_leaves_it_on_trial(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.manager.apply(plan(host))

    def refuse(*_arguments: str) -> None:
        raise LiveUpgradeError("no")

    monkeypatch.setattr(host.kernel, "set_parameter", refuse)
    with pytest.raises(LiveUpgradeError, match="no. KVM is as it was before"):
        host.present(2, default=True)
    assert host.manager.picture().trials == (TWO,)
