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
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from checkout import ARTIFACTS, BUILD, NEW_SERIES, ROOT

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from kmodlab.amd import AmdMachine
from kmodlab.builds import ModuleBuilds, Modules
from kmodlab.cases import CASES, DEBIAN, Case
from kmodlab.figures import source_figures
from kmodlab.intel import IntelMachine
from kmodlab.machine import Boot, Machine, compile_programs, initial_root
from kmodlab.older import get_older_source
from kmodlab.python_root import python_root
from kmodlab.root import get_build_root
from kmodlab.table import Row, judge, render
from vmmlab.artifact import default_artifact, get_outer_qemu
from vmmlab.cache import Cache, default_root
from vmmlab.generation import DEFAULT, GENERATIONS, Generation
from vmmlab.kernel import Kernel, get_kernel
from vmmlab.own_kernel import get_own_kernel
from vmmlab.progress import LabError, Progress

RESULTS = BUILD / "results" / "kmod.json"
LOGS = BUILD / "test-logs" / "kmod"
VENDORS = ["amd", "intel"]


def make_boots(scratch: Path, generation: Generation, names: set[str], progress: Progress) -> dict[str, Boot]:
    """Have the kernels of these names and all modules for them built, and initial roots with them made in ``scratch``."""
    cache = Cache(default_root() / "lab")
    debian = get_kernel(cache, "host", progress, generation)
    root = get_build_root(cache, debian, progress, generation)
    programs = compile_programs(scratch)
    boots = {}
    for name in sorted(names):
        folder = scratch / name
        folder.mkdir()
        if name == DEBIAN:
            kernel: Kernel = debian
            builds = _builds(generation, root, kernel, folder, progress)
            modules = builds.all(get_older_source(cache, debian, progress, generation))
        else:
            kernel = own = get_own_kernel(cache, name, debian, root, progress)
            modules = _builds(generation, own.root, own, folder, progress).for_debugging(own)
        boots[name] = _make_boot(folder, kernel, programs, modules)
    return boots


def _builds(generation: Generation, root: Path, kernel: Kernel, folder: Path, progress: Progress) -> ModuleBuilds:
    return ModuleBuilds(ROOT / "kmod", generation.series, root, kernel.release, ARTIFACTS, folder, progress)


def _make_boot(folder: Path, kernel: Kernel, programs: list[Path], modules: Modules) -> Boot:
    boot = Boot(kernel, folder / "initrd.gz", folder / "python-initrd.gz")
    boot.initrd.write_bytes(initial_root(programs, kernel, modules))
    boot.python_initrd.write_bytes(boot.initrd.read_bytes() + python_root(modules))
    return boot


def prepare(
    scratch: Path, vendors: list[str], generation: Generation, cases: list[Case], progress: Progress
) -> list[Machine]:
    """Return the machines, ready to run the cases."""
    kernels = {case.kernel for case in cases for vendor in vendors if (case.amd if vendor == "amd" else case.intel)}
    boots = make_boots(scratch, generation, kernels, progress)
    machines: list[Machine] = []
    if "amd" in vendors:
        machines.append(make_amd(boots, progress))
    if "intel" in vendors and any(case.intel for case in cases):
        folder = scratch / "intel"
        folder.mkdir()
        machines.append(IntelMachine(boots[DEBIAN].kernel, boots[DEBIAN].initrd, folder))
    return machines


def make_amd(boots: dict[str, Boot], progress: Progress) -> AmdMachine:
    return AmdMachine(get_outer_qemu(Cache(default_root() / "lab"), default_artifact(NEW_SERIES), progress), boots)


def run(cases: list[Case], machine: Machine, series: str, progress: Progress) -> list[Row]:
    logs = LOGS / series
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
    if arguments.series != DEFAULT.series:
        cases = [case for case in cases if case.kernel == DEBIAN]  # kernels of our own are of that series
    if unknown := set(arguments.cases) - {case.name for case in cases}:
        parser.error(f"no such case of Linux {arguments.series}: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
            generation = GENERATIONS[arguments.series]
            machines = prepare(Path(scratch), arguments.vendor or VENDORS, generation, cases, progress)
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
