# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs where in a fleet, and what is behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.vmm.live_upgrade.plugins.filter.running_builds import FilterModule, running_builds
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import age_s

OLD, NEW = "qemu-10.2.2-0000000000000000", "qemu-11.1.1-1111111111111111"


def vm(name: str, build_id: str | None = OLD, age_s: int = 60) -> dict[str, Any]:
    """Return what vm_info tells of a VM."""
    return {"name": name, "build_id": build_id, "version": "7.2.0", "age_s": age_s}


FLEET = {
    "h1": {"default_build_id": NEW, "vms": [vm("a", NEW, 5), vm("b", OLD, 86400 * 41)]},
    "h2": {"default_build_id": OLD, "vms": [vm("a", OLD, 7200)]},
    "h3": {"default_build_id": None, "vms": [vm("c", None, 90)]},
    "h4": {"default_build_id": NEW, "vms": []},
}


def test_builds_are_counted_by_what_runs_and_behind_is_another_than_new_vms_get() -> None:
    found = running_builds(FLEET)

    assert found["rows"] == [
        [OLD, 2, 2, 1, "2 h", "41 d"],
        ["QEMU 7.2.0, foreign", 1, 1, 0, "1 min 30 s", "1 min 30 s"],
        [NEW, 1, 1, 0, "5 s", "5 s"],
    ]
    assert found["summary"] == "4 VMs on 3 hosts, 3 builds; 1 on 1 host behind, the oldest process for 41 d."
    assert [(entry["host"], entry["name"], entry["behind"]) for entry in found["vms"] if entry["behind"]] == [
        ("h1", "b", NEW)
    ]
    assert found["by_host"]["h2"]["a"]["age"] == "2 h"


def test_with_a_build_that_is_wanted_all_others_are_behind() -> None:
    found = running_builds(FLEET, NEW)

    assert [row[3] for row in found["rows"]] == [2, 1, 0]
    assert found["summary"].startswith("4 VMs on 3 hosts, 3 builds; 3 on 3 hosts behind")


@pytest.mark.parametrize(
    ("fleet", "summary"),
    [
        ({}, "No VM runs."),
        ({"h4": FLEET["h4"]}, "No VM runs."),
        ({"h2": FLEET["h2"]}, "1 VM on 1 host, 1 build; none is behind."),
    ],
    ids="nobody no-vm even".split(),
)
def test_small_fleets(fleet: dict[str, Any], summary: str) -> None:
    assert running_builds(fleet)["summary"] == summary


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="given for h9 is no answer of vm_info"):
        running_builds({"h9": {"msg": "unreachable"}})


def test_ansible_finds_it() -> None:
    assert FilterModule().filters() == {"running_builds": running_builds}


def test_the_age_of_a_process_is_that_which_the_kernel_tells() -> None:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    started_s = ticks / os.sysconf("SC_CLK_TCK")

    told_s = age_s(ticks)

    assert abs(told_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)) < 2
    assert age_s(10**12) == 0
