# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout by ansible-runner: plan, a person who approves it, then wave by wave for as long as each passes.

python3 waves.py PRIVATE_DATA_DIR BUILD     the directory has `inventory`, and `env` where ansible-runner needs settings
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import ansible_runner

# What the statuses mean is told in docs/rollout.md of the collection.
GOES_ON = "wave_done"


def play(directory: Path, name: str, **variables: Any) -> int:
    """Run a playbook of the collection and return its exit status."""
    # Not as extravars: ansible-runner keeps those in the directory, and would give them to the next run, too.
    options = shlex.join(["-e", json.dumps(variables)])
    run = ansible_runner.run(private_data_dir=str(directory), playbook=f"vmm.live_upgrade.{name}", cmdline=options)
    return int(run.rc)


def main() -> int:
    directory, build = Path(sys.argv[1]).absolute(), sys.argv[2]
    results = directory / "results"
    plan, report, status = (str(results / name) for name in ("plan.json", "upgrade.json", "upgrade.status.json"))
    Path(status).unlink(missing_ok=True)

    if play(directory, "plan", upgrade_build=build, upgrade_plan=plan):
        return 2
    hash_of_plan = json.loads(Path(plan).read_text(encoding="utf-8"))["hash"]
    if input(f"Approve {plan} by its hash {hash_of_plan}: ") != hash_of_plan:
        return 2

    wave = 0
    ended = play(
        directory,
        "upgrade",
        upgrade_plan=plan,
        upgrade_approved=hash_of_plan,
        upgrade_report=report,
        upgrade_until_wave=0,
    )
    while ended == 0 and (told := json.loads(Path(status).read_text(encoding="utf-8")))["status"] == GOES_ON:
        wave += 1
        ended = play(
            directory, "upgrade", upgrade_resume=told["rollout_id"], upgrade_report=report, upgrade_until_wave=wave
        )
    return ended


if __name__ == "__main__":
    sys.exit(main())
