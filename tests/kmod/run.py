#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two builds of KVM in one kernel, on an emulated host: ``run.py [--series SERIES] [--vendor amd|intel] [CASE ...]``.

Prints a table. A run of all cases of a vendor and series writes them to ``build/results/kmod.json`` as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from checkout import ARTIFACTS, BUILD, NEW_SERIES, ROOT

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from kmodlab.amd import AmdMachine
from kmodlab.builds import ModuleBuilds
from kmodlab.cases import CASES, Case
from kmodlab.figures import source_figures
from kmodlab.intel import IntelMachine
from kmodlab.machine import Machine, compile_programs, initial_root
from kmodlab.older import get_older_source
from kmodlab.python_root import python_root
from kmodlab.root import get_build_root
from kmodlab.table import Row, judge, render
from vmmlab.artifact import default_artifact, get_outer_qemu
from vmmlab.cache import Cache, default_root
from vmmlab.generation import DEFAULT, GENERATIONS, Generation
from vmmlab.kernel import Kernel, get_kernel
from vmmlab.progress import LabError, Progress

RESULTS = BUILD / "results" / "kmod.json"
VENDORS = ["amd", "intel"]


@dataclass(frozen=True)
class Boot:
    """What a host of the tests boots: ``python_initrd`` for cases that want Python."""

    kernel: Kernel
    initrd: Path
    python_initrd: Path


def make_boot(scratch: Path, generation: Generation, progress: Progress) -> Boot:
    """Have all modules of a generation built, and initial roots with them made in ``scratch``."""
    cache = Cache(default_root() / "lab")
    kernel = get_kernel(cache, "host", progress, generation)
    root = get_build_root(cache, kernel, progress, generation)
    older = get_older_source(cache, kernel, progress, generation)
    builds = ModuleBuilds(
        ROOT / "kmod", generation.series, root, older, kernel.release, ARTIFACTS, scratch, progress
    )  # fmt: skip
    modules = builds.all()
    initrd, python_initrd = scratch / "initrd.gz", scratch / "python-initrd.gz"
    initrd.write_bytes(initial_root(compile_programs(scratch), kernel, modules))
    python_initrd.write_bytes(initrd.read_bytes() + python_root(modules))
    return Boot(kernel, initrd, python_initrd)


def prepare(scratch: Path, vendors: list[str], generation: Generation, progress: Progress) -> list[Machine]:
    """Return the machines, ready to run cases."""
    boot = make_boot(scratch, generation, progress)
    machines: list[Machine] = []
    if "amd" in vendors:
        emulator = get_outer_qemu(Cache(default_root() / "lab"), default_artifact(NEW_SERIES), progress)
        machines.append(AmdMachine(emulator, boot.kernel, boot.initrd, boot.python_initrd))
    if "intel" in vendors:
        folder = scratch / "intel"
        folder.mkdir()
        machines.append(IntelMachine(boot.kernel, boot.initrd, folder))
    return machines


def run(cases: list[Case], machine: Machine, series: str, progress: Progress) -> list[Row]:
    logs = BUILD / "test-logs" / "kmod" / series
    logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        for config in case.amd if machine.vendor == "amd" else case.intel:
            log = logs / f"{machine.vendor}-{case.name}-{config}.log"
            row = judge(case, machine.vendor, config, machine.run(case, config, log))
            told = f"{series} {row.vendor} {row.test}, {row.config}: {row.verdict} ({row.seconds} s) {row.why}"
            progress.say(told.rstrip())
            rows.append(row)
    return rows


def write_results(series: str, rows: list[Row]) -> None:
    """Write the rows in place of those that the file has of the same series and vendors."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    vendors = {row.vendor for row in rows}
    kept = [row for row in known if row.get("series", DEFAULT.series) != series or row["vendor"] not in vendors]
    new = [{"series": series, **dataclasses.asdict(row)} for row in rows]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"rows": kept + new}, indent=1) + "\n")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that the machine that runs is ended


def main() -> int:
    parser = argparse.ArgumentParser(description="Run two builds of KVM in one kernel.")
    parser.add_argument(
        "--series", choices=list(GENERATIONS), default=DEFAULT.series, help="of Linux; %(default)s without it"
    )
    parser.add_argument("--vendor", action="append", choices=VENDORS, help="only this one; both without it")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"only these: {', '.join(case.name for case in CASES)}"
    )
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    if unknown := set(arguments.cases) - {case.name for case in cases}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
            generation = GENERATIONS[arguments.series]
            machines = prepare(Path(scratch), arguments.vendor or VENDORS, generation, progress)
            rows = [row for machine in machines for row in run(cases, machine, arguments.series, progress)]
    except (LabError, LiveUpgradeError) as error:
        progress.say(str(error))
        return 1
    if not arguments.cases:
        write_results(arguments.series, rows)
    print(render(rows))
    print("\n".join(source_figures(ROOT / "kmod")))
    return 1 if any(row.verdict != "pass" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
