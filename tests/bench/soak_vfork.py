#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many upgrades back and forth on one VM under load: ``soak_vfork.py [HOPS]``.

Prints progress and a closing table, writes ``build/results/soak.json``, and fails when anything was lost or left over.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.tests.integration.load.soak import Soak
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import qemu_binary

RESULTS = Path(__file__).resolve().parents[2] / "build" / "results" / "soak.json"


def main() -> int:
    hops = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}s] {line}", flush=True)

    builds = (qemu_binary("10.2"), qemu_binary("11.1"))
    with tempfile.TemporaryDirectory(prefix="vmm-soak-") as directory:
        report = Soak(builds, Path(directory), hops, say).run()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    print(report.table())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
