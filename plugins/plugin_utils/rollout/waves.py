# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout: which hosts form which wave. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Sequence

from ansible.errors import AnsibleError
from ansible.utils.helpers import pct_to_int


def plan_waves(hosts: Sequence[str], sizes: Sequence[int | str]) -> list[list[str]]:
    """Split ``hosts`` as Ansible's ``serial`` splits a play: the last size repeats, a percentage is of all hosts.

    Raises ``AnsibleError`` when a size is neither a positive number nor a percentage.
    """
    counts = wave_counts(sizes, len(hosts))
    waves: list[list[str]] = []
    start = 0
    while start < len(hosts):
        count = counts[min(len(waves), len(counts) - 1)]
        waves.append(list(hosts[start : start + count]))
        start += count
    return waves


def wave_counts(sizes: Sequence[int | str], total: int) -> list[int]:
    """Return ``sizes`` as numbers of hosts, of ``total``. Raises ``AnsibleError`` as ``plan_waves`` does."""
    if not sizes:
        raise AnsibleError("upgrade_waves is empty; it needs at least one size such as 1 or '100%'")
    return [_size(size, total) for size in sizes]


def _size(size: int | str, total: int) -> int:
    try:
        count = int(pct_to_int(size, total))
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(size, bool):
        raise AnsibleError(
            f"upgrade_waves holds {size!r}; a size is a positive number of hosts or a percentage like '25%'"
        )
    return count
