# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement over each case, device by device, and the table of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .cases import BAD, LIMITED, OF_PROCESS, Case

LINE = "{:6} {:8} {:20} {:11} {:>6} {:>6} {:>10} {:>5} {:>5} {:>8}  {}"


@dataclass(frozen=True)
class Row:
    """One device in one case. ``why`` is empty when all is as it has to be."""

    device: str
    backend: str
    iommu: str
    case: str
    ios: int
    io_errors: int
    mismatches: int
    lost_interrupts: int
    extra_interrupts: int
    longest_gap_ms: float
    vm_alive: bool
    why: str


@dataclass(frozen=True)
class Pins:
    """What was pinned before and after a case, and what was mapped and unmapped for devices meanwhile."""

    iommu: str
    backend: str
    case: str
    pinned_before_kib: int
    pinned_after_kib: int
    dma_maps: int
    dma_unmaps: int

    @classmethod
    def of(cls, iommu: str, backend: str, facts: dict[str, Any]) -> Pins:
        return cls(iommu, backend, facts["case"], *facts["pinned_kib"], *facts["dma_maps"])

    def line(self) -> str:
        """For people."""
        return (
            f"{self.iommu} {self.backend} {self.case}: pinned {self.pinned_before_kib} KiB, then {self.pinned_after_kib}; "
            f"{self.dma_maps} DMA maps made, {self.dma_unmaps} taken away"
        )


def rows_of(case: Case, iommu: str, backend: str, facts: dict[str, Any], devices: list[str]) -> list[Row]:
    """Judge what the host has told of a case; a device that it has not told of has none of it."""
    nothing = {"ios": 0, "works": False, "longest_gap_ms": 0.0, **dict.fromkeys(BAD, 0)}
    common = _why_wrong(case, backend, facts)
    rows = []
    for device in devices:
        told = facts.get("devices", {}).get(device, nothing)
        why = common or ("" if case.lost else _why_device(told))
        numbers = {name: told[name] for name in ("ios", *BAD, "longest_gap_ms")}
        rows.append(Row(device, backend, iommu, case.name, **numbers, vm_alive=facts["vm_alive"], why=why))
    return rows


def missing(case: Case, iommu: str, backend: str, devices: list[str], why: str) -> list[Row]:
    """The rows of a case that did not come to be run."""
    facts = {"vm_alive": False, "complaint": why}
    return rows_of(case, iommu, backend, facts, devices)


def _why_wrong(case: Case, backend: str, facts: dict[str, Any]) -> str:
    complaint = facts["complaint"]
    if case.lost:
        if facts["vm_alive"]:
            return "the VM is not lost, as it has to be"
        if not re.search(case.complaint, complaint):
            return f"it does not go wrong as it has to: {complaint}"
        return ""
    if complaint:
        return str(complaint)
    if not facts["vm_alive"]:
        return "the VM is lost"
    if facts["complaints"]:
        return f"the guest's kernel complains {facts['complaints']} times"
    if facts["host_complaints"]:
        return f"the host's kernel complains {facts['host_complaints']} times"
    before, after = facts["pinned_kib"]
    # The kernel does not book what iommufd has pinned over to a process that takes the maps, unless it counts against a limit; so
    # there it can only grow less. And what was pinned for a device that the host took back it books a second time with the next
    # one, though QEMU has closed all.
    is_exact = backend == "legacy" or case.way in (LIMITED, OF_PROCESS)
    if (after > before and (is_exact or not case.remaps)) or (after < before and is_exact):
        return f"{before} KiB were pinned, and then {after}"
    if any(facts["dma_maps"]) and not case.remaps:
        return f"{facts['dma_maps'][0]} DMA maps and {facts['dma_maps'][1]} unmaps were made"
    return ""


def _why_device(told: dict[str, Any]) -> str:
    if not told["works"]:
        return "it does not work any more"
    return ", ".join(f"{told[name]} {name.replace('_', ' ')}" for name in BAD if told[name])


def render(rows: list[Row]) -> str:
    """The table for people."""
    lines = [
        LINE.format("iommu", "backend", "case", "device", "ios", "errors", "mismatches", "lost", "extra", "gap ms", "")
    ]
    for row in rows:
        bad = (row.io_errors, row.mismatches, row.lost_interrupts, row.extra_interrupts)
        verdict = f"FAILED: {row.why}" if row.why else "ok" if row.vm_alive else "lost, as it has to be"
        lines.append(
            LINE.format(
                row.iommu, row.backend, row.case, row.device, row.ios, *bad, row.longest_gap_ms, verdict
            ).rstrip()
        )
    return "\n".join(lines)
