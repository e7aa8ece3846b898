# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts form which wave, so that no wave holds more of a failure domain than it may. PRIVATE to the collection."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.utils.helpers import pct_to_int

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_facts import HostFacts
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.waves import wave_counts

Units = Mapping[str, Mapping[str, int]]


class Domains:
    """The failure domains of a fleet: how many units each has, and how many of them one wave may hold."""

    def __init__(self, hosts: Sequence[HostFacts], shares: Mapping[str, int | str]) -> None:
        """``hosts``: all of them, also those in no wave: a domain is no smaller for what is not upgraded.

        Raises ``AnsibleError`` for a share that is neither a positive number nor a percentage.
        """
        self.totals: dict[str, dict[str, int]] = {kind: {} for kind in shares}
        for host in hosts:
            _count(host.units, self.totals)
        for kind, share in shares.items():
            _limit(kind, share, 1)
            if not self.totals[kind]:
                raise AnsibleError(
                    f"upgrade_domains names {kind}, but no host has such a variable, so no wave could heed it; nothing was "
                    "touched. Correct the name, or give it to the hosts"
                )
        self._limits = {
            kind: {value: _limit(kind, shares[kind], total) for value, total in values.items()}
            for kind, values in self.totals.items()
        }

    def excess(self, units: Units, held: Units | None = None) -> str:
        """Say of which domain ``units`` hold more than one wave may beside what it has ``held``, empty when of none."""
        for kind, values in units.items():
            for value, more in values.items():
                count = more + (held or {}).get(kind, {}).get(value, 0)
                if count > self._limits[kind][value]:
                    return (
                        f"{kind} {value}: {count} of its {self.totals[kind][value]}, where a wave may hold "
                        f"{self._limits[kind][value]}"
                    )
        return ""

    def neediest_first(self, hosts: Sequence[HostFacts]) -> list[HostFacts]:
        """Return ``hosts`` by how many waves the fullest of their domains needs for what of it is among them."""
        left: dict[str, dict[str, int]] = {kind: {} for kind in self.totals}
        for host in hosts:
            _count(host.units, left)
        return sorted(
            hosts,
            key=lambda host: -max(
                (
                    left[kind][value] / self._limits[kind][value]
                    for kind, values in host.units.items()
                    for value in values
                ),
                default=0,
            ),
        )

    def describe(self, units: Units) -> dict[str, dict[str, dict[str, int]]]:
        """Return kind → value → how many of how many, and how many there might be."""
        return {
            kind: {
                value: {"n": count, "of": self.totals[kind][value], "limit": self._limits[kind][value]}
                for value, count in sorted(values.items())
            }
            for kind, values in units.items()
        }


def add_units(one: Units, other: Units) -> dict[str, dict[str, int]]:
    """Return the sum of what two sets of hosts hold."""
    found = {kind: dict(values) for kind, values in one.items()}
    _count(other, found)
    return found


def _count(units: Units, into: dict[str, dict[str, int]]) -> None:
    for kind, values in units.items():
        mine = into.setdefault(kind, {})
        for value, count in values.items():
            mine[value] = mine.get(value, 0) + count


def spread_waves(hosts: Sequence[HostFacts], sizes: Sequence[int | str], domains: Domains) -> list[list[HostFacts]]:
    """Put ``hosts``, each of which fits into a wave alone, into waves of at most ``sizes``.

    The first wave takes the hosts that show most: of domains, classes and mechanisms not in it yet. Later ones take hosts of
    the domains that need most waves yet, or else the rest of them would be what is left at the end. Hosts of one wave have the
    same maintenance windows, or none.
    """
    counts = wave_counts(sizes, len(hosts))
    left = list(hosts)
    waves: list[list[HostFacts]] = []
    while left:
        size = counts[min(len(waves), len(counts) - 1)]
        wave = (
            _fill(left, size, domains, _Shown())
            if not waves
            else _fill(domains.neediest_first(left), size, domains, None)
        )
        waves.append(wave)
        taken = {host.name for host in wave}
        left = [host for host in left if host.name not in taken]
    return waves


class _Shown:
    """What the hosts chosen so far would prove the new build on."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, ...]] = set()
        self._known: dict[str, set[tuple[str, ...]]] = {}

    def news(self, host: HostFacts) -> tuple[bool, int]:
        """A host without a VM to move proves nothing, whatever rack it is in."""
        return bool(host.moves), len(self._traits(host) - self._seen)

    def best_of(self, hosts: deque[HostFacts]) -> HostFacts:
        """Take the host that would show most out of ``hosts``, the first of several."""
        at = max(range(len(hosts)), key=lambda index: (self.news(hosts[index]), -index))
        host = hosts[at]
        del hosts[at]
        return host

    def add(self, host: HostFacts) -> None:
        self._seen |= self._traits(host)

    def _traits(self, host: HostFacts) -> set[tuple[str, ...]]:
        if host.name in self._known:
            return self._known[host.name]
        traits: set[tuple[str, ...]] = {(kind, value) for kind, values in host.units.items() for value in values}
        for vm in host.moves:
            traits |= {("class", str(vm["class"])), ("mechanism", str(vm["mechanism"])), ("from", str(vm["old_build"]))}
        self._known[host.name] = traits
        return traits


def _fill(left: Sequence[HostFacts], size: int, domains: Domains, shown: _Shown | None) -> list[HostFacts]:
    wave: list[HostFacts] = []
    units: dict[str, dict[str, int]] = {}
    windows: list[dict[str, Any]] = []
    candidates = deque(left)
    while candidates and len(wave) < size:
        host = candidates.popleft() if shown is None else shown.best_of(candidates)
        if domains.excess(host.units, units) or (windows and host.windows and host.windows != windows):
            continue
        wave.append(host)
        _count(host.units, units)
        windows = windows or host.windows
        if shown is not None:
            shown.add(host)
    return wave


def _limit(kind: str, share: int | str, total: int) -> int:
    """A share of ``total`` in whole units, at least one: with less nothing of the domain could ever be upgraded."""
    try:
        count = int(pct_to_int(share, total, min_value=1))
        sensible = not isinstance(share, bool) and int(str(share).rstrip("%")) >= 1
    except (TypeError, ValueError):
        count, sensible = 0, False
    if not sensible:
        raise AnsibleError(
            f"upgrade_domains: the share of {kind} is {share!r}; it must be a positive number or a percentage like '25%'. "
            "Nothing was touched"
        )
    return count
