# SPDX-License-Identifier: GPL-3.0-or-later
"""The rounds of a benchmark in figures: what goes into the results, the table, and how they stand to what is aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_IN_RESULTS = ("downtime_ms", "total_ms", "extra_memory_mib", "cpu_s")
_LEGEND = (
    "Each pair is the median and the largest. Downtime: the pause of the hand-over. Any stall: the longest time without\n"
    "progress of the guest from the request on, for whatever reason. CPU: besides vCPUs, more than when idle."
)


@dataclass(frozen=True)
class Measured:
    """One move of a VM.

    ``downtime_ms``: the pause of the hand-over. ``stall_ms``: the longest time without progress of the guest from the
    request on, be it that other processes were let run in its place. ``total_ms``: from the request until the old process
    is gone, without the time that our readings take. ``cpu_s``: of both processes but their vCPUs, more than the VM uses
    anyway in that time.
    """

    downtime_ms: float
    stall_ms: float
    total_ms: float
    extra_memory_mib: float
    cpu_s: float


@dataclass
class Cell:
    """The rounds of one mechanism with one shape of VM: a list per quantity, in the order of the rounds."""

    mechanism: str
    vcpus: int
    ram_mib: int
    downtime_ms: list[float] = field(default_factory=list)
    stall_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    extra_memory_mib: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def shape(self) -> str:
        """The VM, for people."""
        return f"{self.vcpus} vCPU, {self.ram_mib} MiB"

    def add(self, measured: Measured) -> None:
        """Take in a round."""
        for name, value in vars(measured).items():
            getattr(self, name).append(value)

    def to_dict(self) -> dict[str, Any]:
        """Return what the results have of it."""
        shape = {"mechanism": self.mechanism, "vcpus": self.vcpus, "ram_mib": self.ram_mib, "n": len(self.downtime_ms)}
        return {**shape, **{name: _spread(getattr(self, name)) for name in _IN_RESULTS}}


@dataclass(frozen=True)
class Verdict:
    """One thing that is aimed at, in words with the figures, and whether it was reached."""

    text: str
    reached: bool


def table(cells: Sequence[Cell]) -> str:
    """Return the table for the terminal."""
    lines = [
        f"{'vCPU':>4} {'RAM MiB':>7}  {'mechanism':20} {'n':>3}  {'downtime ms':>15}  {'any stall ms':>15}  "
        f"{'total ms':>15}  {'extra memory MiB':>16}  {'CPU s':>15}"
    ]
    for cell in cells:
        lines.append(
            f"{cell.vcpus:>4} {cell.ram_mib:>7}  {cell.mechanism:20} {len(cell.downtime_ms):>3}  "
            f"{_pair(cell.downtime_ms, 1)}  {_pair(cell.stall_ms, 1)}  {_pair(cell.total_ms, 0)}  "
            f"{_pair(cell.extra_memory_mib, 1):>16}  {_pair(cell.cpu_s, 3)}"
        )
    return "\n".join([*lines, _LEGEND])


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    """Return how ``vfork`` stands to what is aimed at, with each shape of VM. Medians, but of memory the largest."""
    found = []
    for cell in cells:
        if cell.mechanism == "vfork":
            others = {other.mechanism: other for other in cells if other.shape == cell.shape}
            for name, share in (("cpr-transfer", 0.5), ("cpr-exec", 0.1)):
                ratio = statistics.median(cell.downtime_ms) / statistics.median(others[name].downtime_ms)
                found.append(_verdict(cell, f"downtime over that of {name}", ratio, share, "x"))
            found += [
                _verdict(cell, "total time", statistics.median(cell.total_ms) / 1000, 0.3, " s"),
                _verdict(cell, "extra memory", max(cell.extra_memory_mib) / 1024, 0.1, " GiB"),
                _verdict(cell, "CPU time", statistics.median(cell.cpu_s), 0.1, " core-seconds"),
            ]
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def _pair(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):>7.{digits}f} {max(values):>7.{digits}f}"


def _verdict(cell: Cell, what: str, value: float, limit: float, unit: str) -> Verdict:
    return Verdict(f"{cell.shape}: {what} {value:.3g}{unit} (at most {limit:g}{unit})", value <= limit)
