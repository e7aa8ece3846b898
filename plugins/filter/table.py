# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: table
short_description: Lay rows out as a table for people
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Turns a list of rows into lines of text with aligned columns.
positional: headings
options:
  _input:
    description: Rows, each a list of as many values as there are headings. A null is shown as a dash.
    type: list
    elements: list
    required: true
  headings:
    description: The headings of the columns.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show who runs what
  ansible.builtin.debug:
    msg: "{{ [['h1', 'web1', none]] | vmm.live_upgrade.table(['host', 'VM', 'build']) }}"
"""

RETURN = r"""
_value:
  description: The table, a line per row below its headings.
  type: str
"""

from collections.abc import Callable, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError


def table(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> str:
    """Return ``rows`` as lines with aligned columns below ``headings``. Raises ``AnsibleFilterError`` for ragged rows."""
    for row in rows:
        if len(row) != len(headings):
            raise AnsibleFilterError(
                f"a row has {len(row)} values, but there are {len(headings)} headings: {list(row)!r}"
            )
    # One line per row, whatever a value holds.
    cells = [[("-" if value is None else " ".join(str(value).split())) for value in row] for row in rows]
    lines = [list(headings), ["-" * len(heading) for heading in headings], *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


class FilterModule:
    """Filters of this collection."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return name → filter."""
        return {"table": table}
