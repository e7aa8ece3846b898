#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs with passed-through devices, moved to another QEMU while the devices work: ``run.py [options] [CASE ...]``.

Prints a table. A run of everything writes it to ``build/results/vfio.json`` as well. As root. As many hosts are emulated at
once as there are CPUs, each of which takes one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kmod"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from checkout import BUILD

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from vfiolab.cases import CASES, OLDER_KERNEL
from vfiolab.devices import BY_NAME, DEVICES
from vfiolab.host import BACKENDS, Builder, Plan
from vfiolab.machine import IOMMUS, Machine
from vfiolab.table import Pins, Row, missing, render, rows_of
from vmmlab.progress import LabError, Progress

# Where suites are run that are not run everywhere, unless it is said where.
PLACES = {
    "stock": [("intel", "legacy")],
    OLDER_KERNEL: [("intel", "legacy")],
    "soak": [("intel", "legacy"), ("amd", "iommufd")],
}
RESULTS = BUILD / "results" / "vfio.json"
LIMIT_S = 3600


@dataclass(frozen=True)
class Boot:
    """A host to be emulated, with what it is to do."""

    iommu: str
    plan: Plan
    machine: Machine
    initrd: Path

    def run(self, progress: Progress, ended: threading.Event) -> tuple[list[Row], list[Pins]]:
        """Boot, run the plan, and judge it."""
        logs = BUILD / "test-logs" / "vfio"
        logs.mkdir(parents=True, exist_ok=True)
        backend = self.plan.backend
        name = f"{self.iommu}-{backend}-{self.plan.suite}"

        def tell(facts: dict[str, Any]) -> None:
            progress.say(f"{name}: {facts['case']}: {facts['complaint'] or 'done'} ({facts['seconds']} s)")

        ran = self.machine.run(self.iommu, self.initrd, logs / f"{name}.log", LIMIT_S, tell, ended)
        facts = {told["case"]: told for told in ran.facts}
        rows = []
        for case in self.plan.chosen():
            devices = [device for device in self.plan.devices if not case.devices or device in case.devices]
            if case.name in facts:
                rows += rows_of(case, self.iommu, backend, facts[case.name], devices)
            else:
                rows += missing(case, self.iommu, backend, devices, ran.why_not_so_far())
        wrong = [row for row in rows if row.why]
        progress.say(f"{name}: {len(rows)} rows, {len(wrong)} failed ({ran.seconds:.0f} s)")
        pins = [Pins.of(self.iommu, backend, told) for told in ran.facts if "pinned_kib" in told]
        print("\n".join([render(rows), *(each.line() for each in pins)]), flush=True)
        return rows, pins


def boots(found: list[tuple[str, Plan]], builder: Builder, folder: Path) -> list[Boot]:
    """Build what is to be booted, with a folder for each host."""
    made = []
    for number, (iommu, plan) in enumerate(found):
        own = folder / str(number)
        own.mkdir()
        machine = Machine(builder.emulator(), builder.kernel(plan), own, plan.devices)
        made.append(Boot(iommu, plan, machine, builder.initrd(plan, own / "initrd")))
    return made


def run_all(hosts: list[Boot], jobs: int, progress: Progress) -> list[tuple[list[Row], list[Pins]]]:
    """Run so many at once, and end those that run when this is interrupted."""
    ended = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(lambda host: host.run(progress, ended), hosts))
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def plans(arguments: argparse.Namespace) -> list[tuple[str, Plan]]:
    """What is to be run, and on which IOMMU: without a choice everything, where only ``vfork`` is run on all of them."""
    names = [device.name for device in DEVICES if not arguments.device or device.name in arguments.device]
    found = []
    for suite in arguments.suite or list(CASES):
        for iommu in arguments.iommu or list(IOMMUS):
            for backend in arguments.backend or BACKENDS:
                is_said = bool(arguments.iommu or arguments.backend)
                if suite in PLACES and not is_said and (iommu, backend) not in PLACES[suite]:
                    continue
                plan = Plan(suite, backend, names, arguments.cases, {"soak": [str(arguments.hops)]})
                if plan.chosen():
                    found.append((iommu, plan))
    return found


def write_results(rows: list[Row], controls: list[Row], pins: list[Pins]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Any]] = {"rows": rows, "controls": controls, "pins": pins}
    told = {name: [dataclasses.asdict(row) for row in part] for name, part in parts.items()}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that the machine that runs is ended


def _arguments() -> argparse.Namespace:
    known = [case.name for cases in CASES.values() for case in cases]
    parser = argparse.ArgumentParser(description="Move VMs with passed-through devices to another QEMU.")
    parser.add_argument("--suite", action="append", choices=list(CASES), help="only this one")
    parser.add_argument("--iommu", action="append", choices=list(IOMMUS), help="only this one")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one")
    parser.add_argument("--device", action="append", choices=list(BY_NAME), help="only this one, may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="hosts at once (%(default)s)")
    parser.add_argument("--hops", type=int, default=50, help="upgrades of the soak (%(default)s)")
    parser.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a QEMU in place of the artifact: old, new, ...",
    )
    parser.add_argument("--shell", action="store_true", help="boot the host and type what it is to do")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"only these: {', '.join(dict.fromkeys(known))}")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if arguments.jobs < 1:
        parser.error("--jobs: at least one host is to run")
    return arguments


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    given = {name: Path(folder).resolve() for name, _, folder in (text.partition("=") for text in arguments.build)}
    try:
        with tempfile.TemporaryDirectory(prefix="vmm-vfio-") as folder:
            builder = Builder(Path(folder), given, progress)
            hosts = boots(plans(arguments), builder, Path(folder))
            if arguments.shell:
                return hosts[0].machine.shell(hosts[0].iommu, hosts[0].initrd)
            results = run_all(hosts, arguments.jobs, progress)
    except (LabError, LiveUpgradeError) as error:
        progress.say(str(error))
        return 1
    rows: list[Row] = []
    controls: list[Row] = []
    pins: list[Pins] = []
    for host, (judged, pinned) in zip(hosts, results):
        (controls if host.plan.suite == "stock" else rows).extend(judged)
        pins += pinned
    if not (arguments.cases or arguments.device or arguments.suite or arguments.iommu or arguments.backend):
        write_results(rows, controls, pins)
    failed = [row for row in rows + controls if row.why]
    print(f"{len(rows)} rows, {len(controls)} of stock QEMU, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
