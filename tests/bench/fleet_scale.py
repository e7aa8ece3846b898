#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout costs its controller, by the size of the fleet: real rollouts over simulated hosts.

``fleet_scale.py [HOSTSxVMS ...]``, by default 200x5 and 1000x10 (VMs on each host). Writes ``scale`` of
``build/results/fleet.json``, leaving what else is in it, as sizes that were not run; fails when what is aimed at was not reached.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.tests.bench.fleet_gate import RESULTS, keep
from ansible_collections.vmm.live_upgrade.tests.bench.simulated_fleet import NotUpgraded, roll_out

SIZES = ("200x5", "1000x10")
MOST_CPU_S_PER_HOST = 3.0
MOST_GROWTH = 1.1
"""How much more a host of the largest fleet may cost than one of the smallest: a shared machine measures no more exactly."""

Row = dict[str, Any]


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """Return what of ``rows``, by their size, is not as it is aimed at."""
    found = [
        f"{row['hosts']} hosts: {row['controller_cpu_s_per_host']} CPU-s a host, at most {MOST_CPU_S_PER_HOST} are aimed at"
        for row in rows
        if row["controller_cpu_s_per_host"] > MOST_CPU_S_PER_HOST
    ]
    least, most = rows[0], rows[-1]
    growth = most["controller_cpu_s_per_host"] / least["controller_cpu_s_per_host"]
    if growth > MOST_GROWTH:
        found.append(
            f"a host costs {growth:.2f} times as much among {most['hosts']} as among {least['hosts']}: the cost grows faster "
            "than the fleet"
        )
    return found


def merged(rows: Sequence[Row], results: Path) -> list[Row]:
    """Return ``rows`` with those of other sizes that ``results`` has, by their size."""
    known = json.loads(results.read_text()).get("scale", []) if results.exists() else []
    by_size = {(row["hosts"], row["vms"]): row for row in [*known, *rows]}
    return [by_size[size] for size in sorted(by_size)]


def line(row: Row) -> str:
    """Return the row of the table."""
    return (
        f"{row['hosts']:>6} {row['vms']:>7} {row['controller_cpu_s_per_host']:>13.3f} {row['main_cpu_s']:>11.1f} "
        f"{row['wall_s']:>8.1f} {row['peak_mib']:>9.1f} {row['peak_mib_per_host']:>13.3f} {row['calls_per_host']:>11.1f}"
    )


def sizes_of(arguments: Sequence[str]) -> list[tuple[int, int]]:
    """Return hosts and VMs on each of what was asked for. Raises ``SystemExit`` for what is no size."""
    wrong = [argument for argument in arguments if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,2}", argument)]
    if wrong:
        raise SystemExit(f"fleet_scale.py: {wrong[0]!r} is no size; give hosts and the VMs on each, such as {SIZES[0]}")
    return [(int(hosts), int(vms)) for hosts, _x, vms in (size.partition("x") for size in arguments or SIZES)]


def main() -> int:
    rows = []
    print(
        f"{'hosts':>6} {'VMs':>7} {'CPU-s a host':>13} {'main CPU-s':>11} {'wall s':>8} {'peak MiB':>9} {'MiB a host':>13} "
        f"{'calls/host':>11}"
    )
    for hosts, vms_per_host in sizes_of(sys.argv[1:]):
        folder = tempfile.mkdtemp(prefix="vmm-fleet-")  # short: there will be a socket in it
        try:
            row = roll_out(Path(folder) / "fleet", hosts, vms_per_host).to_dict()
        except NotUpgraded as exc:
            print(f"fleet_scale.py: {exc}", file=sys.stderr)  # the folder stays, with what Ansible said
            return 1
        shutil.rmtree(folder)
        rows.append(row)
        print(line(row), flush=True)
        keep("scale", merged(rows, RESULTS), RESULTS)
    missed = shortfalls(rows)
    for text in missed:
        print(text)
    print(
        f"at most {MOST_CPU_S_PER_HOST} CPU-s a host, growing no faster than the fleet: {'MISSED' if missed else 'reached'}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
