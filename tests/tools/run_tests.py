#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""All tests of the project, or some groups of them: ``run_tests.py [GROUP ...]``. Run by ``make test`` and its likes.

Groups that take long for what they show are run by their name only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from checkout import BUILD, LAB, NEW_SERIES, OLD_SERIES, ROOT, VENV, VENV_NEXT, environment
from step_runner import Outcome, Step, StepRunner

PYTHON = str(VENV / "bin" / "python")
PYTEST = (PYTHON, "-m", "pytest", "-q")
LAB_COMMAND = (PYTHON, str(LAB), "--name", "tests")
KVM_LAB_COMMAND = (PYTHON, str(LAB), "--name", "kvm")
BY_NAME_ONLY = ("lab-trouble", "kvm-fleet", "kvm-host", "eda")
KVM_FLEET_TESTS = "tests/integration/lab/test_kvm_core.py"
LAB_TROUBLE_TESTS = "tests/integration/lab/test_trouble_on_a_host.py"
# Six guests that count at 25 Hz take a core of the machine, where hosts are emulated; no test looks closer than a second.
SLOW_GUESTS = ("--tick", "100000")
LAB_USERS = ("lab-tests", "lab-integration", "lab-trouble", "kvm-fleet", "molecule")
# Of tests/integration: those of plays over scripted hosts, and those that are no part of that group.
ROLLOUT_TESTS = ("rollout", "examples", "report")
OTHER_STEPS = ("lab", "lab_kvm", "eda")
# Of the cases of `make test-kmod`, which take an hour in all, those that fail first.
KMOD_CASES = {"amd": ("guests", "fixed-bug", "abi"), "intel": ("names", "abi")}

STEPS = [
    # The builds come first: they take longest when nothing is cached, and most wait for them. What takes long on one core is
    # next, beside all that is short. The lab is up when nothing else wants the machine: its hosts are emulated.
    Step("build-qemu", "build", (PYTHON, "tests/tools/builds.py", OLD_SERIES, NEW_SERIES), cpus=2, limit_s=2400),
    Step(
        "integration",
        "integration",
        (
            *PYTEST,
            "tests/integration",
            *(f"--ignore=tests/integration/{name}" for name in (*OTHER_STEPS, *ROLLOUT_TESTS)),
        ),
        needs=("build-qemu",),
        limit_s=2700,
        pytest=True,
    ),
    Step(
        "integration-rollout",
        "integration",
        (*PYTEST, *(f"tests/integration/{name}" for name in ROLLOUT_TESTS)),
        needs=("build-qemu",),
        limit_s=2700,
        pytest=True,
    ),
    Step("ruff", "lint", ("ruff", "check", ".")),
    Step("black", "lint", ("black", "--check", "--quiet", "--diff", ".")),
    Step("licenses", "lint", (PYTHON, "tests/tools/check_licenses.py")),
    Step("links", "lint", (PYTHON, "tests/tools/check_links.py")),
    Step("role-specs", "lint", (PYTHON, "tests/tools/check_role_specs.py")),
    Step("yamllint", "lint", ("yamllint", "--strict", ".")),
    Step("shellcheck", "lint", (PYTHON, "tests/tools/check_shell.py")),
    Step("changelog", "lint", ("antsibull-changelog", "lint")),
    Step("mypy-plugins", "lint", ("mypy", "-p", "ansible_collections.vmm.live_upgrade.plugins")),
    Step(
        "mypy-tests",
        "lint",
        (
            *("mypy", "tests/tools", "tests/unit/tools", "tests/lab", "tests/kmod"),
            *("tests/integration/lab", "tests/integration/lab_kvm"),
            *("tests/bench", "tests/unit/bench", "tests/integration/bench"),
            *("tests/integration/load", "tests/integration/qemu", "tests/integration/report"),
            *("tests/integration/watch", "tests/unit/watch"),
        ),
    ),
    # by itself: its run.py would be a second one
    Step("mypy-vfio", "lint", ("mypy", "tests/vfio", "tests/unit/vfio")),
    Step("ansible-lint", "lint", ("ansible-lint", "--offline", "--nocolor"), limit_s=900),
    Step("unit", "unit", (*PYTEST, "tests/unit"), pytest=True),
    Step(
        "unit-next",
        "unit",
        (str(VENV_NEXT / "bin" / "python"), "-m", "pytest", "-q", "tests/unit"),
        pytest=True,
        unless="" if VENV_NEXT.exists() else "ansible-core 2.21 needs a Python >= 3.12, and there is none here",
        environment={"PATH": f"{VENV_NEXT / 'bin'}:{os.environ['PATH']}"},
    ),
    Step(
        "sanity",
        "sanity",
        (PYTHON, "tests/tools/sanity.py"),
        limit_s=1800,
        notes=r"^sanity: |Skipping",
    ),
    *(
        Step(
            f"kmod-{vendor}",
            "kmod",
            (PYTHON, "tests/kmod/run.py", "--vendor", vendor, *cases),
            needs=("build-qemu",),
            limit_s=1800,
            unless=(
                "" if os.geteuid() == 0 else "modules are built in a root of Debian 13, and to change root takes root"
            ),
        )
        for vendor, cases in KMOD_CASES.items()
    ),
    Step(
        "lab-up",
        "lab",
        (*LAB_COMMAND, "up", "--hosts", "3", "--vms", "2", "--passthrough", "1", *SLOW_GUESTS),
        needs=("build-qemu",),
        after=("sanity", "integration", "integration-rollout", *(f"kmod-{vendor}" for vendor in KMOD_CASES)),
        limit_s=1500,
    ),
    Step("lab-tests", "lab", (*PYTEST, "tests/lab/tests"), needs=("lab-up",), cpus=2, limit_s=1800, pytest=True),
    Step(
        "lab-integration",
        "lab",
        (*PYTEST, "tests/integration/lab", f"--ignore={KVM_FLEET_TESTS}", f"--ignore={LAB_TROUBLE_TESTS}"),
        needs=("lab-up",),
        after=("lab-tests",),
        cpus=2,
        limit_s=3600,
        pytest=True,
    ),
    Step(
        "lab-trouble",
        "lab-trouble",
        (*PYTEST, LAB_TROUBLE_TESTS),
        needs=("lab-up",),
        after=("lab-tests", "lab-integration"),
        cpus=2,
        limit_s=3600,
        pytest=True,
    ),
    Step(
        "kvm-fleet",
        "kvm-fleet",
        (*PYTEST, "-s", KVM_FLEET_TESTS),
        needs=("lab-up",),
        after=("lab-tests", "lab-integration", "lab-trouble"),
        cpus=2,
        limit_s=3600,
        pytest=True,
    ),
    Step(
        "molecule",
        "molecule",
        (PYTHON, "tests/tools/run_molecule.py", "tests"),
        needs=("lab-up",),
        after=("lab-tests", "lab-integration"),
        cpus=2,
        limit_s=1800,
    ),
    Step("lab-down", "lab", (*LAB_COMMAND, "down"), after=("lab-up", *LAB_USERS), always=True, limit_s=300),
    Step(
        "kvm-lab-up",
        "kvm-host",
        (*KVM_LAB_COMMAND, "up", "--hosts", "1", "--vms", "2"),
        needs=("build-qemu",),
        limit_s=1500,
    ),
    Step(
        "kvm-host",
        "kvm-host",
        (*PYTEST, "tests/integration/lab_kvm"),
        needs=("kvm-lab-up",),
        cpus=2,
        limit_s=3600,
        pytest=True,
    ),
    Step(
        "kvm-lab-down",
        "kvm-host",
        (*KVM_LAB_COMMAND, "down"),
        after=("kvm-lab-up", "kvm-host"),
        always=True,
        limit_s=300,
    ),
    Step("eda-setup", "eda", ("tests/tools/bootstrap.sh", "--eda"), limit_s=600),
    Step("eda", "eda", (*PYTEST, "tests/integration/eda"), needs=("eda-setup",), limit_s=900, pytest=True),
]


def select(groups: list[str]) -> list[Step]:
    """Return the steps of ``groups``, with what they need, and the clean-ups of that. Empty: all but ``BY_NAME_ONLY``."""
    known = {step.name: step for step in STEPS}
    groups = groups or [step.group for step in STEPS if step.group not in BY_NAME_ONLY]
    wanted = {step.name for step in STEPS if not step.always and step.group in groups}
    while more := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= more
    wanted |= {step.name for step in STEPS if step.always and wanted & set(step.after)}
    return [_within(step, wanted) for step in STEPS if step.name in wanted]


def _within(step: Step, names: set[str]) -> Step:
    """The step, waiting only for steps that take part."""
    return Step(**{**step.__dict__, "after": tuple(name for name in step.after if name in names)})


def summary(outcomes: list[Outcome]) -> str:
    """Return a table of the steps, and as the last line the counts in the form that is easy to find."""
    width = max(len(outcome.step.name) for outcome in outcomes)
    lines = [f"{'step':{width}}  {'result':7}  {'seconds':>8}  {'passed':>6}  {'failed':>6}  {'skipped':>7}"]
    for outcome in outcomes:
        lines.append(
            f"{outcome.step.name:{width}}  {outcome.state:7}  {outcome.seconds:8.1f}  {outcome.passed:6}  "
            f"{outcome.failed:6}  {outcome.skipped:7}"
        )
        lines += [f"{'':{width}}    {remark}" for remark in outcome.remarks]
    total = [sum(getattr(outcome, name) for outcome in outcomes) for name in ("passed", "failed", "skipped")]
    return "\n".join([*lines, "", f"{total[0]} passed, {total[1]} failed, {total[2]} skipped"])


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    groups = sorted({step.group for step in STEPS})
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"only these: {', '.join(groups)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(groups):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    # SIGINT too: whoever starts this in the background has it ignored, and children would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminate)
    runner = StepRunner(select(arguments.groups), BUILD / "test-logs", environment(), ROOT, os.cpu_count() or 1)
    outcomes = runner.run()
    print()
    print(summary(outcomes), flush=True)
    if runner.interrupted:
        return 130
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
