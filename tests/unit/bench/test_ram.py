# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in what was seen of the counter the pause lies."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import Gap
from ansible_collections.vmm.live_upgrade.tests.bench.ram import RamTrace, Stand, gap_across, gap_within
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import COUNTER_OFFSET

RAM_BYTES = 3 << 20

# It counts, pauses from 20 to 50 at 3, counts on; from 60 to 100 the one who looked was not let run.
KEPT = [Stand(0, 9, 1), Stand(10, 19, 2), Stand(20, 50, 3), Stand(51, 60, 4), Stand(100, 101, 5)]
LEFT = [Stand(10, 19, 100), Stand(20, 29, 200), Stand(30, 400, 300)]


def test_pause_is_the_longest_time_at_one_value() -> None:
    assert gap_within(KEPT, 0, 200) == Gap(20, 50)


def test_time_in_which_nobody_looked_is_no_pause() -> None:
    assert gap_within(KEPT, 55, 200) == Gap(51, 60)


def test_interval_that_nobody_saw_anything_of_has_the_looks_around_it() -> None:
    assert gap_within(KEPT, 65, 90) == Gap(60, 100)


def test_pause_outside_of_the_interval_is_another() -> None:
    assert gap_within(KEPT, 5, 15) in (Gap(0, 9), Gap(10, 19))
    assert gap_within(KEPT, 200, 300) is None


@pytest.mark.parametrize(
    ("arrived_in", "pause"),
    [
        pytest.param([Stand(0, 80, 0), Stand(81, 90, 301)], Gap(30, 80), id="never-copied"),
        pytest.param(
            [Stand(0, 14, 0), Stand(15, 34, 150), Stand(35, 80, 300), Stand(81, 90, 305)], Gap(30, 80), id="copies"
        ),
        pytest.param([Stand(0, 60, 0), Stand(61, 80, 290), Stand(81, 90, 305)], Gap(30, 80), id="stale-copy-late"),
        pytest.param([Stand(0, 34, 0), Stand(35, 80, 300)], None, id="never-runs"),
        pytest.param([], None, id="nothing-seen"),
    ],
)
def test_copies_into_the_other_ram_do_not_end_the_pause(arrived_in: list[Stand], pause: Gap | None) -> None:
    assert gap_across(LEFT, arrived_in) == pause


def test_every_value_of_the_counter_is_traced_and_traces_stop_in_any_order() -> None:
    memory = os.memfd_create("memory-backend-memfd-test")
    os.ftruncate(memory, RAM_BYTES)
    first, second = RamTrace(os.getpid(), RAM_BYTES), RamTrace(os.getpid(), RAM_BYTES)
    for value in range(1, 6):
        os.pwrite(memory, value.to_bytes(8, "little"), COUNTER_OFFSET)
        time.sleep(0.05)

    traces = [first.stop(), second.stop()]

    os.close(memory)
    for seen in traces:
        assert [stand.value for stand in seen][-5:] == [1, 2, 3, 4, 5]
        assert all(before.last_ns < after.first_ns for before, after in itertools.pairwise(seen))
