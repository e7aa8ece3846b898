#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a guest stands still when its QEMU is replaced: the mechanisms side by side on one machine, round by round.

``downtime.py [ROUNDS]`` runs a guest that counts and writes without pause, moves it to and fro between the two builds by
each mechanism in turn, and watches the counter from outside. Prints a table and writes ``downtime.json`` and
``downtime.svg`` to ``build/results``; asserts no times, because the machine is nobody's alone. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.tests.bench.cost import available_mib
from ansible_collections.vmm.live_upgrade.tests.bench.figures import Cell, table, verdicts
from ansible_collections.vmm.live_upgrade.tests.bench.mechanisms import MECHANISMS, PATCHED
from ansible_collections.vmm.live_upgrade.tests.bench.plot import picture
from ansible_collections.vmm.live_upgrade.tests.bench.subject import Subject

RESULTS = Path(__file__).resolve().parents[2] / "build" / "results"
SHAPES = ((1, 1024), (16, 8192))
_SPARE_MIB = 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long a guest stands still, mechanism by mechanism.")
    parser.add_argument("rounds", nargs="?", type=int, default=20, help="how often each mechanism is tried (20)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"ROUNDS is {rounds}: give 1 or more")
    if lacking := _lacking_mib():
        print(f"{lacking} MiB of free memory are lacking: a local migration holds the RAM of the largest VM twice")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        cells = [cell for vcpus, ram_mib in SHAPES for cell in _measure(vcpus, ram_mib, rounds)]
    except KeyboardInterrupt:
        print("interrupted; nothing was written")
        return 130
    _tell(cells)
    return 0


def order(number: int) -> list[str]:
    """Return the mechanisms in the order of a round: each comes first in turn.

    Each moves the VM to the other version, and is to go as often up as down.
    """
    names = list(MECHANISMS)
    first = number % len(names)
    return names[first:] + names[:first]


def _measure(vcpus: int, ram_mib: int, rounds: int) -> list[Cell]:
    cells = {name: Cell(name, vcpus, ram_mib) for name in MECHANISMS}
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        print(f"{vcpus} vCPU, {ram_mib} MiB: starting", flush=True)
        subject = Subject(Path(directory), vcpus, ram_mib)
        try:
            for number in range(rounds):
                for name in order(number):
                    cells[name].add(subject.move(name))
                last = ", ".join(f"{name} {cell.downtime_ms[-1]:.1f}" for name, cell in cells.items())
                print(f"{vcpus} vCPU, {ram_mib} MiB: round {number + 1} of {rounds}: {last} ms", flush=True)
        finally:
            subject.close()
    return list(cells.values())


def _tell(cells: Sequence[Cell]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    peers = [cell.to_dict() for cell in cells if cell.mechanism != PATCHED]
    results = {"cells": peers, "same_build": [cell.to_dict() for cell in cells if cell.mechanism == PATCHED]}
    (RESULTS / "downtime.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "downtime.svg").write_text(picture(cells))
    print(f"\n{table(cells)}\n\nWhat is aimed at with vfork:")
    for verdict in verdicts(cells):
        print(f"  {'reached' if verdict.reached else 'missed '}  {verdict.text}")
    print(f"\n{RESULTS / 'downtime.json'}, {RESULTS / 'downtime.svg'}")


def _lacking_mib() -> int:
    return max(0, 2 * max(ram_mib for _vcpus, ram_mib in SHAPES) + _SPARE_MIB - available_mib())


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
