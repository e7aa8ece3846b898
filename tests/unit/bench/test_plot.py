# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the downtimes: its axis, and what it shows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from ansible_collections.vmm.live_upgrade.tests.bench.figures import Cell
from ansible_collections.vmm.live_upgrade.tests.bench.plot import Axis, picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [((3.0, 250.0), 1, 1000), ((0.4, 9.0), 0.1, 10), ((10.0, 10.0), 10, 100), ((1.0, 100.0), 1, 100)],
)
def test_axis_has_whole_decades_around_the_values(values: tuple[float, ...], first: float, last: float) -> None:
    axis = Axis.over(values)

    assert (axis.first, axis.last) == pytest.approx((first, last))


def test_axis_is_logarithmic() -> None:
    axis = Axis(1, 100)

    assert axis.x(10) - axis.x(1) == pytest.approx(axis.x(100) - axis.x(10))
    assert [tick["label"] for tick in axis.ticks() if tick["label"]] == ["1", "2", "5", "10", "20", "50", "100"]
    assert [tick["label"] for tick in axis.ticks() if tick["major"]] == ["1", "10", "100"]


def test_picture_shows_each_round_of_each_cell() -> None:
    rounds = [2.0, 20.0, 4.0]
    cells = [Cell(name, *shape, rounds) for shape in ((1, 1024), (16, 8192)) for name in ("vfork", "cpr-exec")]

    root = ElementTree.fromstring(picture(cells))

    axis = Axis.over(rounds)
    groups = root.findall(f"{SVG}g")
    assert len(groups) == len(cells)
    for group in groups:
        assert [float(dot.attrib["cx"]) for dot in group.iter(f"{SVG}circle")] == [axis.x(value) for value in rounds]
        stroke = group.find(f"{SVG}rect")
        assert stroke is not None and float(stroke.attrib["x"]) + 1.5 == pytest.approx(axis.x(4.0))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert [text for text in texts if text and "vCPU" in text] == [
        "1 vCPU, 1024 MiB, 3 rounds",
        "16 vCPU, 8192 MiB, 3 rounds",
    ]
    assert texts.count("4 ms") == len(cells)
    bottom = float(root.attrib["height"])
    assert all(float(text.attrib["y"]) < bottom for text in root.iter(f"{SVG}text"))
