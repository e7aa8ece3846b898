# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement over what the host of the passthrough tests has told."""

from __future__ import annotations

from typing import Any

import pytest

from vfiolab.cases import CASES, Case
from vfiolab.table import missing, render, rows_of

GOOD = {
    "ios": 20,
    "io_errors": 0,
    "mismatches": 0,
    "lost_interrupts": 0,
    "extra_interrupts": 0,
    "works": True,
    "longest_gap_ms": 300.0,
}
UPGRADE = Case("upgrade", "", "vfork")
LOST = Case("dies", "", "transfer", complaint="QmpDead", lost=True)


def _facts(device: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "case": "upgrade",
        "complaint": "",
        "vm_alive": True,
        "devices": {"nvme": {**GOOD, **(device or {})}},
        "complaints": 0,
        "host_complaints": 0,
        "pinned_kib": [262400, 262400],
        "dma_maps": [0, 0],
    }
    return facts | changes


def _why(case: Case, facts: dict[str, Any], devices: tuple[str, ...] = ("nvme",)) -> str:
    return rows_of(case, "intel", "legacy", facts, list(devices))[-1].why


def test_a_vm_whose_devices_work_on_passes() -> None:
    (row,) = rows_of(UPGRADE, "intel", "legacy", _facts(), ["nvme"])
    assert (row.device, row.ios, row.longest_gap_ms, row.vm_alive, row.why) == ("nvme", 20, 300.0, True, "")


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (_facts({"io_errors": 1}), "1 io errors"),
        (_facts({"mismatches": 2}), "2 mismatches"),
        (_facts({"lost_interrupts": 1}), "1 lost interrupts"),
        (_facts({"extra_interrupts": 1}), "1 extra interrupts"),
        (_facts({"works": False}), "does not work any more"),
        (_facts(vm_alive=False), "the VM is lost"),
        (_facts(complaint="aborted: why"), "aborted: why"),
        (_facts(complaints=1), "guest's kernel complains"),
        (_facts(host_complaints=1), "host's kernel complains"),
        (_facts(pinned_kib=[262400, 524800]), "524800"),
        (_facts(dma_maps=[1, 0]), "1 DMA maps"),
        (_facts(dma_maps=[0, 7]), "7 unmaps"),
        (_facts(devices={}), "does not work any more"),
    ],
)
def test_whatever_is_not_as_before_fails(facts: dict[str, Any], why: str) -> None:
    assert why in _why(UPGRADE, facts)


def test_a_guest_that_sets_its_devices_up_anew_changes_maps_and_nothing_else() -> None:
    rebooted = Case("rebooted", "", "reboot", remaps=True)

    assert _why(rebooted, _facts(dma_maps=[964, 964])) == ""
    assert "524800" in _why(rebooted, _facts(pinned_kib=[262400, 524800]))


def test_what_iommufd_has_pinned_is_booked_with_the_first_process_and_must_not_grow() -> None:
    def why(before: int, after: int) -> str:
        return rows_of(UPGRADE, "intel", "iommufd", _facts(pinned_kib=[before, after]), ["nvme"])[0].why

    assert why(262400, 0) == ""
    assert "524800" in why(262400, 524800)


def test_a_control_has_to_lose_the_vm_and_in_the_way_it_is_made_for() -> None:
    assert _why(LOST, _facts(complaint="QmpDeadError: gone", vm_alive=False, devices={})) == ""
    assert "not lost" in _why(LOST, _facts(complaint="QmpDeadError: gone"))
    assert "does not go wrong as it has to" in _why(LOST, _facts(complaint="no VM", vm_alive=False))


def test_a_case_that_was_not_run_fails_a_control_too() -> None:
    for case in (UPGRADE, LOST):
        (row,) = missing(case, "amd", "iommufd", ["nvme"], "the machine ended before it")
        assert "the machine ended before it" in row.why
        assert f"FAILED: {row.why}" in render([row])


def test_names_of_cases_are_unique_in_a_suite() -> None:
    for cases in CASES.values():
        assert len({case.name for case in cases}) == len(cases)
