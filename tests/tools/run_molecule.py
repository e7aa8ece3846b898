#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs all Molecule scenarios on the hosts of a lab that is up: ``run_molecule.py LAB_NAME``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from checkout import BUILD, LAB, NEW_SERIES, OLD_SERIES, ROOT, TREE, environment


def main() -> int:
    lab_name = sys.argv[1]
    builds = {
        series: json.loads((BUILD / "builds" / f"{series}.json").read_text()) for series in (OLD_SERIES, NEW_SERIES)
    }
    values = environment(
        VMM_LAB=f"{sys.executable} {LAB} --name {lab_name}",
        VMM_LAB_INVENTORY=str(BUILD / "lab" / lab_name / "inventory.yml"),
        VMM_OLD_BUILD=builds[OLD_SERIES]["build_id"],
        VMM_NEW_BUILD=builds[NEW_SERIES]["build_id"],
        VMM_NEW_ARTIFACT=builds[NEW_SERIES]["artifact"],
        ANSIBLE_FORCE_COLOR="0",
        NO_COLOR="1",
    )
    values.pop("ANSIBLE_CONFIG")
    # What it keeps of an earlier run is of a lab that may be gone: it would not prepare anew, and compare with other guests.
    for kept in (BUILD / "ansible-home" / "tmp").glob("molecule.*"):
        shutil.rmtree(kept)
    # Molecule knows a collection by the folders it lies in.
    checkout = TREE / "ansible_collections" / "vmm" / "live_upgrade"
    assert checkout.resolve() == ROOT
    return subprocess.run(["molecule", "test", "--all", "--report"], cwd=checkout, env=values, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
