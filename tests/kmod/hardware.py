#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases on a real machine: ``hardware.py write FOLDER``, there ``FOLDER/run-case``, then ``hardware.py judge VENDOR FOLDER``.

``hardware.py rehearse`` does all of that for some of them, with an emulated machine in the place of the real one.

What emulation cannot prove takes hardware (docs/kmod.md). A machine that nobody needs boots into a case by kexec, tells how
it goes on its first serial port, and goes off. What came out of that is to be in ``FOLDER/<case>-<configuration>.log``.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

from run import LOGS, VENDORS, make_amd, make_boots

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from kmodlab.cases import CASES, DEBIAN, DEBUG, Case
from kmodlab.kit import kit_root
from kmodlab.machine import Boot, Run
from kmodlab.root import get_build_root
from kmodlab.table import judge, render
from vmmlab.cache import Cache, default_root
from vmmlab.generation import DEFAULT, GENERATIONS, Generation
from vmmlab.kernel import get_kernel
from vmmlab.progress import LabError, Progress

# Mitigations are on, as they are where VMs run.
KERNEL_ARGUMENTS = "console=ttyS0,115200 loglevel=5 panic=1"
REHEARSED = (("abi", "one"), ("guests", "two"))
REHEARSAL_LOGS = LOGS / "kit"
RUN_CASE = Path(__file__).resolve().parent / "guest" / "run-case"


def write(folder: Path, generation: Generation, kernels: set[str], progress: Progress) -> None:
    """Write kernels, initial roots, the list of cases and the script that boots one to the new ``folder``."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
        for name, boot in make_boots(Path(scratch), generation, kernels, progress).items():
            for source in (boot.kernel.image, boot.initrd, boot.python_initrd):
                shutil.copy(source, folder / f"{name}-{source.name}")
    cases = [case for case in CASES if case.kernel in kernels]
    lines = [boot_line(case, config) for case in cases for config in dict.fromkeys((*case.amd, *case.intel))]
    (folder / "cases").write_text("".join(f"{line}\n" for line in lines))
    shutil.copy(RUN_CASE, folder / RUN_CASE.name)


def boot_line(case: Case, config: str) -> str:
    """What ``run-case`` reads: case, configuration, kernel, initial root, arguments of the kernel."""
    initrd = "python-initrd.gz" if case.python else "initrd.gz"
    arguments = f"{KERNEL_ARGUMENTS} {case.arguments}".rstrip()
    files = f"{case.kernel}-vmlinuz {case.kernel}-{initrd}"
    return f"{case.name} {config} {files} {arguments} kmod.case={case.name} kmod.config={config}"


def rehearse(progress: Progress) -> int:
    """Have an emulated AMD machine run some cases as a real one would, and judge them; return the exit status."""
    cache = Cache(default_root() / "lab")
    kernel = get_kernel(cache, "host", progress)
    root = get_build_root(cache, kernel, progress)
    shutil.rmtree(REHEARSAL_LOGS, ignore_errors=True)
    REHEARSAL_LOGS.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="vmm-kmod-") as scratch:
        folder = Path(scratch) / "kit"
        write(folder, DEFAULT, {DEBIAN}, progress)
        for name, config in REHEARSED:
            case = next(case for case in CASES if case.name == name)
            initrd = Path(scratch) / "initrd.gz"
            initrd.write_bytes(kit_root(folder, boot_line(case, config), root))
            machine = make_amd({case.kernel: Boot(kernel, initrd, initrd)}, progress)
            # it boots twice, and with mitigations
            longer = dataclasses.replace(case, limit_s=case.limit_s * 4)
            run = machine.run(longer, config, REHEARSAL_LOGS / f"{name}-{config}.log")
            progress.say(f"{name} {config}: {' '.join(run.last_word())} ({run.seconds:.0f} s)")
    return judge_logs("amd", REHEARSAL_LOGS)


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
    writing.add_argument(
        "--debug", action="store_true", help="with the cases on the debug kernel, which is compiled for them"
    )
    judging = commands.add_parser("judge", help="judge what it wrote")
    judging.add_argument("vendor", choices=VENDORS)
    commands.add_parser("rehearse", help="write it and run some cases by it on an emulated machine")
    for command in (writing, judging):
        command.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write" and arguments.debug and arguments.series != DEFAULT.series:
        parser.error(f"the debug kernel is of Linux {DEFAULT.series}")
    if arguments.command == "judge":
        return judge_logs(arguments.vendor, arguments.folder)
    progress = Progress()
    try:
        if arguments.command == "rehearse":
            return rehearse(progress)
        kernels = {DEBIAN, DEBUG} if arguments.debug else {DEBIAN}
        write(arguments.folder, GENERATIONS[arguments.series], kernels, progress)
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
