#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases on a real machine: ``hardware.py write FOLDER``, there ``FOLDER/run-case``, then ``hardware.py judge VENDOR FOLDER``.

What emulation cannot prove takes hardware (docs/kmod.md). A machine that nobody needs boots into a case by kexec, tells how
it goes on its first serial port, and goes off. What came out of that is to be in ``FOLDER/<case>-<configuration>.log``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from run import VENDORS, make_boot

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from kmodlab.cases import CASES, Case
from kmodlab.machine import Run
from kmodlab.table import judge, render
from vmmlab.generation import DEFAULT, GENERATIONS, Generation
from vmmlab.progress import LabError, Progress

# Mitigations are on, as they are where VMs run.
KERNEL_ARGUMENTS = "console=ttyS0,115200 loglevel=5 panic=1"
RUN_CASE = Path(__file__).resolve().parent / "guest" / "run-case"


def write(folder: Path, generation: Generation, progress: Progress) -> None:
    """Write kernel, initial roots, the list of cases and the script that boots one to the new ``folder``."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
        boot = make_boot(Path(scratch), generation, progress)
        for source in (boot.kernel.image, boot.initrd, boot.python_initrd):
            shutil.copy(source, folder / source.name)
    lines = [boot_line(case, config) for case in CASES for config in dict.fromkeys((*case.amd, *case.intel))]
    (folder / "cases").write_text("".join(f"{line}\n" for line in lines))
    shutil.copy(RUN_CASE, folder / RUN_CASE.name)


def boot_line(case: Case, config: str) -> str:
    """What ``run-case`` reads: case, configuration, initial root, arguments of the kernel."""
    initrd = "python-initrd.gz" if case.python else "initrd.gz"
    arguments = f"{KERNEL_ARGUMENTS} {case.arguments}".rstrip()
    return f"{case.name} {config} {initrd} {arguments} kmod.case={case.name} kmod.config={config}"


def judge_logs(vendor: str, folder: Path) -> int:
    """Print the table of the logs there are; return the exit status."""
    rows = []
    for case in CASES:
        for config in case.amd if vendor == "amd" else case.intel:
            log = folder / f"{case.name}-{config}.log"
            if log.exists():
                rows.append(judge(case, vendor, config, Run(log.read_text(errors="replace"), True, 0.0)))
    if not rows:
        print(f"{folder} has no logs of cases that {vendor} has: they are called <case>-<configuration>.log")
        return 1
    print(render(rows))
    return 1 if any(row.verdict != "pass" for row in rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the KVM tests on a real machine.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    writing = commands.add_parser("write", help="write what the machine needs to a new folder")
    writing.add_argument("--series", choices=list(GENERATIONS), default=DEFAULT.series, help="of Linux")
    judging = commands.add_parser("judge", help="judge what it wrote")
    judging.add_argument("vendor", choices=VENDORS)
    for command in (writing, judging):
        command.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "judge":
        return judge_logs(arguments.vendor, arguments.folder)
    progress = Progress()
    try:
        write(arguments.folder, GENERATIONS[arguments.series], progress)
    except FileExistsError:
        progress.say(f"{arguments.folder} exists: name a new folder")
        return 1
    except (LabError, LiveUpgradeError) as error:
        progress.say(str(error))
        return 1
    progress.say(f"copy {arguments.folder} to the machine and run there, as root: run-case CASE CONFIGURATION")
    return 0


if __name__ == "__main__":
    sys.exit(main())
