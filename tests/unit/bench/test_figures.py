# SPDX-License-Identifier: GPL-3.0-or-later
"""The rounds in figures: results, table, and what was reached."""

from __future__ import annotations

import pytest

from ansible_collections.vmm.live_upgrade.tests.bench.downtime import order
from ansible_collections.vmm.live_upgrade.tests.bench.figures import Cell, Measured, table, verdicts


def cell(mechanism: str, *downtimes_ms: float, **values: float) -> Cell:
    """Return a cell with a round for each downtime."""
    made = Cell(mechanism, 16, 8192)
    for downtime_ms in downtimes_ms:
        rest = {"stall_ms": 50.0, "total_ms": 200.0, "extra_memory_mib": 40.0, "cpu_s": 0.05, **values}
        made.add(Measured(downtime_ms=downtime_ms, **rest))
    return made


def row(vfork: Cell) -> list[Cell]:
    return [vfork, cell("cpr-transfer", 10, 12, 14), cell("cpr-exec", 90, 100, 110), cell("local-migration", 200)]


def test_results_have_median_and_largest_of_each_quantity() -> None:
    assert cell("vfork", 3, 9, 4).to_dict() == {
        "mechanism": "vfork",
        "vcpus": 16,
        "ram_mib": 8192,
        "n": 3,
        "downtime_ms": {"median": 4, "max": 9},
        "total_ms": {"median": 200, "max": 200},
        "extra_memory_mib": {"median": 40, "max": 40},
        "cpu_s": {"median": 0.05, "max": 0.05},
    }


def test_table_has_a_line_per_cell_with_columns_in_line() -> None:
    head, *lines = table(row(cell("vfork", 3.14, 9, 4))).splitlines()[:5]

    assert lines[0].split() == [
        *("16", "8192", "vfork", "3", "4.0", "9.0", "50.0", "50.0"),
        *("200", "200", "40.0", "40.0", "0.050", "0.050"),
    ]
    assert {len(line) for line in [head, *lines]} == {len(head)}


@pytest.mark.parametrize(
    ("vfork", "missed"),
    [
        pytest.param(cell("vfork", 5, 6, 90), [], id="all-reached"),
        pytest.param(cell("vfork", 7, 7, 7), ["downtime over that of cpr-transfer 0.583x (at most 0.5x)"], id="slow"),
        pytest.param(
            cell("vfork", 20),
            [
                "downtime over that of cpr-transfer 1.67x (at most 0.5x)",
                "downtime over that of cpr-exec 0.2x (at most 0.1x)",
            ],
            id="slower",
        ),
        pytest.param(cell("vfork", 5, total_ms=310), ["total time 0.31 s (at most 0.3 s)"], id="long"),
        pytest.param(cell("vfork", 5, extra_memory_mib=512), ["extra memory 0.5 GiB (at most 0.1 GiB)"], id="big"),
        pytest.param(cell("vfork", 5, cpu_s=0.2), ["CPU time 0.2 core-seconds (at most 0.1 core-seconds)"], id="busy"),
    ],
)
def test_what_is_aimed_at_is_reached_or_not(vfork: Cell, missed: list[str]) -> None:
    found = verdicts(row(vfork))

    assert len(found) == 5
    assert [verdict.text for verdict in found if not verdict.reached] == [
        f"16 vCPU, 8192 MiB: {text}" for text in missed
    ]


def test_one_round_with_much_memory_misses_it() -> None:
    vfork = cell("vfork", 5, 5, 5)
    vfork.extra_memory_mib[1] = 8192

    assert [verdict.reached for verdict in verdicts(row(vfork))] == [True, True, True, False, True]


def test_each_mechanism_comes_first_in_turn_and_goes_both_ways() -> None:
    names = order(0)
    moves = [name for number in range(2 * len(names)) for name in order(number)]

    assert {order(number)[0] for number in range(len(names))} == set(names)
    for name in names:
        up = [number % 2 == 0 for number, moved in enumerate(moves) if moved == name]
        assert sum(up) == len(up) / 2, f"{name} goes {up}"
