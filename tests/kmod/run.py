#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two builds of KVM in one kernel, on an emulated host: ``run.py [CASE ...]``.

Prints a table. A run of all cases writes ``build/results/kmod.json`` as well.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from checkout import ARTIFACTS, BUILD, NEW_SERIES, ROOT

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from kmodlab.builds import ModuleBuilds
from kmodlab.machine import Machine, compile_vmload, initial_root
from kmodlab.root import get_build_root
from kmodlab.table import CASES, Case, Row, judge, render
from vmmlab.artifact import default_artifact, get_outer_qemu
from vmmlab.cache import Cache, default_root
from vmmlab.kernel import get_kernel
from vmmlab.progress import LabError, Progress

RESULTS = BUILD / "results" / "kmod.json"


def prepare(scratch: Path, progress: Progress) -> Machine:
    """Have all modules built and return the machine that has them."""
    cache = Cache(default_root() / "lab")
    kernel = get_kernel(cache, "host", progress)
    root = get_build_root(cache, kernel, progress)
    modules = ModuleBuilds(ROOT / "kmod", root, kernel.release, ARTIFACTS, scratch, progress).all()
    compile_vmload(scratch / "vmload")
    initrd = scratch / "initrd.gz"
    initrd.write_bytes(initial_root(scratch / "vmload", kernel, modules))
    return Machine(get_outer_qemu(cache, default_artifact(NEW_SERIES), progress), kernel, initrd)


def run(cases: list[Case], machine: Machine, progress: Progress) -> list[Row]:
    logs = BUILD / "test-logs" / "kmod"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    rows = []
    for case in cases:
        for config in case.configs:
            log = logs / f"{case.name}-{config}.log"
            row = judge(case, config, machine.run(case.name, config, case.arguments, case.limit_s, log))
            progress.say(f"{row.test}, {row.config}: {row.verdict} ({row.seconds} s) {row.why}".rstrip())
            rows.append(row)
    return rows


def main() -> int:
    wanted = sys.argv[1:]
    cases = [case for case in CASES if not wanted or case.name in wanted]
    if unknown := set(wanted) - {case.name for case in cases}:
        print(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(case.name for case in CASES)}")
        return 2
    progress = Progress()
    try:
        with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
            rows = run(cases, prepare(Path(scratch), progress), progress)
    except (LabError, LiveUpgradeError) as error:
        progress.say(str(error))
        return 1
    if not wanted:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")
    print(render(rows))
    return 1 if any(row.verdict != "pass" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
