#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault that can be injected into a hand-over by cpr-vfork, done now, row by row, with what came of it.

Writes ``build/results/faults.json``; fails when a verdict is bad.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory, qemu_binary, working_accel
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.fault_run import Verdict, run_fault
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.faults import FAULTS, Fault
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import VmFactory

RESULTS = Path(__file__).resolve().parents[2] / "build" / "results" / "faults.json"
COLUMNS = "{:31} {:9} {:13} {:8} {:8} {:5} {:7} {}"


def _do(fault: Fault, old: Path, new: Path) -> Verdict:
    """In a directory and with processes of its own."""
    with tempfile.TemporaryDirectory(prefix="vmm-fault-") as directory:
        factory = QemuFactory(Path(directory), old, working_accel(new))
        start = VmFactory(factory, old)
        try:
            return run_fault(fault, start, new)
        except (AssertionError, OSError) as exc:
            return Verdict(fault, "it did not come to an end", "unknown", False, [], [f"{type(exc).__name__}: {exc}"])
        finally:
            start.close()
            factory.close()


def main() -> int:
    old, new = qemu_binary("10.2"), qemu_binary("11.1")
    print(COLUMNS.format("fault", "phase", "may run it", "runs it", "counter", "leaks", "verdict", "what happened"))
    verdicts = []
    for fault in FAULTS:
        it = _do(fault, old, new)
        verdicts.append(it)
        counter = "monotone" if it.monotone else "BACK"
        row = (fault.name, fault.phase, " or ".join(fault.runner), it.runner, counter, len(it.leaks))
        print(COLUMNS.format(*row, "FAILED" if it.wrong else "ok", it.happened), flush=True)
        for wrong in it.wrong:
            print(f"    {wrong}", flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([verdict.to_dict() for verdict in verdicts], indent=1) + "\n")
    bad = sum(bool(verdict.wrong) for verdict in verdicts)
    print(f"{len(verdicts)} faults injected, {bad} bad verdicts")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
