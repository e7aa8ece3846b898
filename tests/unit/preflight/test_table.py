# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows for people."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.vmm.live_upgrade.plugins.filter.table import FilterModule, table


def test_columns_are_aligned_and_a_row_is_a_line() -> None:
    assert table([["h1", None, 2], ["host-2", "a\nb", "x "]], ["host", "VM", "n"]).splitlines() == [
        "host    VM   n",
        "----    --   -",
        "h1      -    2",
        "host-2  a b  x",
    ]


def test_no_rows_leave_the_headings() -> None:
    assert table([], ["host"]) == "host\n----"


def test_ragged_rows_are_an_error() -> None:
    with pytest.raises(AnsibleFilterError, match="2 values, but there are 1 headings"):
        table([["a", "b"]], ["host"])


def test_filter_has_its_name() -> None:
    assert FilterModule().filters() == {"table": table}
