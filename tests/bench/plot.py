# SPDX-License-Identifier: GPL-3.0-or-later
"""The downtimes as a picture: a row per mechanism and shape of VM, a dot per round, the median as a stroke, log axis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from ansible_collections.vmm.live_upgrade.tests.bench.figures import Cell

_LEFT, _RIGHT, _WIDTH = 160, 770, 900
_TOP, _ROW, _HEADING = 44, 30, 34
# Dots of like values lie beside each other instead of on one another.
_LANES = (0, -6, 6, -3, 3)
_COLOURS = {"vfork": "#1b6ca8", "cpr-transfer": "#2f8f5b", "cpr-exec": "#b8860b", "local-migration": "#b3423a"}
_COLOUR_OF_OTHERS = "#808080"

_TEMPLATE = Path(__file__).with_name("downtime.svg.j2")


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis over whole decades."""

    first: float
    last: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """Return the axis for ``values``, all of which must be greater than 0."""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(10.0**low, 10.0 ** max(high, low + 1))

    def x(self, value: float) -> float:
        """Return where ``value`` lies in the picture."""
        share = math.log10(value / self.first) / math.log10(self.last / self.first)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    def ticks(self) -> list[dict[str, object]]:
        """Return the grid: decades, with their 2 and 5 labelled too."""
        decades = round(math.log10(self.last / self.first))
        values = [self.first * 10**decade * digit for decade in range(decades) for digit in range(1, 10)]
        return [self._tick(value) for value in [*values, self.last]]

    def _tick(self, value: float) -> dict[str, object]:
        digit = f"{value:e}"[0]
        return {"x": self.x(value), "major": digit == "1", "label": f"{value:g}" if digit in "125" else ""}


def picture(cells: Sequence[Cell]) -> str:
    """Return the picture, an SVG."""
    axis = Axis.over([value for cell in cells for value in cell.downtime_ms])
    rows: list[dict[str, object]] = []
    headings: list[dict[str, object]] = []
    y = _TOP
    for before, cell in zip([None, *cells], cells, strict=False):
        if before is None or before.shape != cell.shape:
            headings.append({"y": y + 22, "text": f"{cell.shape}, {len(cell.downtime_ms)} rounds"})
            y += _HEADING
        rows.append(_row(cell, axis, y + _ROW // 2))
        y += _ROW
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text())
    return template.render(
        title="How long the guest stands still",
        ticks=axis.ticks(),
        headings=headings,
        rows=rows,
        width=_WIDTH,
        height=y + 56,
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=y + 6,
    )


def _row(cell: Cell, axis: Axis, y: int) -> dict[str, object]:
    median = statistics.median(cell.downtime_ms)
    return {
        "label": cell.mechanism,
        "colour": _COLOURS.get(cell.mechanism, _COLOUR_OF_OTHERS),
        "y": y,
        "dots": [
            {"x": axis.x(value), "y": y + _LANES[number % len(_LANES)]} for number, value in enumerate(cell.downtime_ms)
        ],
        "median": f"{median:.3g} ms",
        "median_x": axis.x(median),
    }
