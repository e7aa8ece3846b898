# SPDX-License-Identifier: GPL-3.0-or-later
"""How often pages were mapped for devices, and unmapped, as the kernel's trace events of the IOMMU have it."""

from __future__ import annotations

import re
from pathlib import Path

_TRACING = Path("/sys/kernel/tracing")


def start() -> None:
    """Begin to count."""
    for event in ("map", "unmap"):
        instance = _instance(event)
        instance.mkdir()
        (instance / "events" / "iommu" / event / "enable").write_text("1")


def maps() -> tuple[int, int]:
    """(maps, unmaps) since the start."""
    return _count("map"), _count("unmap")


def _count(event: str) -> int:
    total = 0
    for stats in (_instance(event) / "per_cpu").glob("cpu*/stats"):
        found = re.findall(r"^(?:entries|overrun): (\d+)", stats.read_text(), re.MULTILINE)
        total += sum(int(value) for value in found)
    return total


def _instance(event: str) -> Path:
    return _TRACING / "instances" / f"iommu-{event}"
