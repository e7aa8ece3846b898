# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a list of steps, side by side where cores are free, and tells the truth about each.

Every step is a command in a session of its own, whose output goes to a file; it is printed when the step fails. A step
that runs pytest is judged by the report that pytest writes as well: what it skipped is named, and is a failure unless
the step allows it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

HEARTBEAT_S = 60
END_GRACE_S = 120
SHOWN_OUTPUT_BYTES = 60_000


@dataclass(frozen=True)
class Step:
    """One command.

    ``needs`` must have succeeded, ``after`` must have ended. ``cpus`` is what it takes of the machine's cores, and
    ``limit_s`` what it may take of time. ``always`` is a clean-up: it runs whatever happened, an interrupt too.
    ``unless`` is the reason why it cannot run here, if there is one. ``notes`` finds lines to repeat in the summary.
    """

    name: str
    group: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cpus: int = 1
    limit_s: int = 600
    always: bool = False
    pytest: bool = False
    allowed_skips: tuple[str, ...] = ()
    unless: str = ""
    notes: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a step. ``state`` is ``ok``, ``failed`` or ``not run``."""

    step: Step
    state: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    remarks: tuple[str, ...] = ()


class StepRunner:
    """Runs steps with ``cpus`` cores; ``logs`` gets a file for each."""

    def __init__(self, steps: list[Step], logs: Path, environment: dict[str, str], cwd: Path, cpus: int) -> None:
        self._steps = steps
        self._logs = logs
        self._environment = environment
        self._cwd = cwd
        self._cpus = cpus
        self._began = time.monotonic()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._interrupted = False

    def run(self) -> list[Outcome]:
        """Run all; return the outcomes in the order of the list. An interrupt ends what runs, and clean-ups still run."""
        self._logs.mkdir(parents=True, exist_ok=True)
        outcomes: dict[str, Outcome] = {}
        running: dict[Future[Outcome], Step] = {}
        with ThreadPoolExecutor(max_workers=len(self._steps) or 1) as pool:
            while len(outcomes) < len(self._steps):
                try:
                    for step in self._startable(outcomes, running):
                        running[pool.submit(self._run_step, step)] = step
                    self._settle_unrunnable(outcomes)
                    done = wait(running, timeout=HEARTBEAT_S, return_when=FIRST_COMPLETED).done if running else set()
                    if running and not done:
                        self._heartbeat(list(running.values()))
                    for future in done:
                        outcomes[running.pop(future).name] = self._told(future.result())
                except KeyboardInterrupt:
                    self._interrupt()
        return [outcomes[step.name] for step in self._steps]

    @property
    def interrupted(self) -> bool:
        """Whether somebody pressed Ctrl-C or sent SIGTERM."""
        return self._interrupted

    def say(self, text: str) -> None:
        """Print ``text`` with the time since the start."""
        print(f"[{time.monotonic() - self._began:7.1f}s] {text}", flush=True)

    def _startable(self, outcomes: dict[str, Outcome], running: dict[Future[Outcome], Step]) -> list[Step]:
        names = {step.name for step in running.values()}
        free = self._cpus - sum(step.cpus for step in running.values())
        found = []
        for step in self._steps:
            if step.name in outcomes or step.name in names or self._obstacle(step, outcomes):
                continue
            waits = [name for name in (*step.needs, *step.after) if name not in outcomes]
            wanted = min(step.cpus, self._cpus)
            if not waits and wanted <= free:
                free -= wanted
                found.append(step)
        return found

    def _settle_unrunnable(self, outcomes: dict[str, Outcome]) -> None:
        for step in self._steps:
            reason = self._obstacle(step, outcomes)
            if step.name in outcomes or step.name in self._processes or not reason:
                continue
            failed = 0 if reason == step.unless else 1
            outcomes[step.name] = Outcome(step, "not run", failed=failed, remarks=(reason,))
            self.say(f"not run {step.name}: {reason}")

    def _obstacle(self, step: Step, outcomes: dict[str, Outcome]) -> str:
        if step.unless:
            return step.unless
        if self._interrupted and not step.always:
            return "interrupted"
        bad = [name for name in step.needs if name in outcomes and outcomes[name].state != "ok"]
        return f"needs {', '.join(bad)}" if bad else ""

    def _run_step(self, step: Step) -> Outcome:
        self.say(f"start   {step.name}")
        began = time.monotonic()
        report = self._logs / f"{step.name}.xml"
        report.unlink(missing_ok=True)
        command = [*step.command, *([f"--junitxml={report}"] if step.pytest else [])]
        with open(self._log(step), "wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env={**self._environment, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with self._lock:
                self._processes[step.name] = process
            remarks: tuple[str, ...] = ()
            try:
                process.wait(step.limit_s)
            except subprocess.TimeoutExpired:
                remarks = (f"did not end in {step.limit_s} s",)
                self._end(process)
        seconds = time.monotonic() - began
        if step.pytest:
            return _judge_pytest(step, process.returncode, report, seconds, remarks)
        good = process.returncode == 0 and not remarks
        remarks += self._notes(step)
        return Outcome(step, "ok" if good else "failed", seconds, int(good), int(not good), 0, remarks)

    def _notes(self, step: Step) -> tuple[str, ...]:
        if not step.notes:
            return ()
        lines = self._log(step).read_text(errors="replace").splitlines()
        return tuple(dict.fromkeys(line.strip() for line in lines if re.search(step.notes, line)))

    def _told(self, outcome: Outcome) -> Outcome:
        counts = f", {outcome.passed} passed" if outcome.step.pytest else ""
        self.say(f"{outcome.state:7} {outcome.step.name} ({outcome.seconds:.1f} s{counts})")
        if outcome.state == "failed":
            for remark in outcome.remarks:
                print(f"    {remark}", flush=True)
            print(f"---- output of {outcome.step.name}: {' '.join(outcome.step.command)}", flush=True)
            output = self._log(outcome.step).read_bytes()
            if len(output) > SHOWN_OUTPUT_BYTES:
                print(f"(the last {SHOWN_OUTPUT_BYTES} bytes; all of it is in {self._log(outcome.step)})", flush=True)
            print(output[-SHOWN_OUTPUT_BYTES:].decode(errors="replace"), flush=True)
            print(f"---- end of {outcome.step.name}", flush=True)
        return outcome

    def _heartbeat(self, steps: list[Step]) -> None:
        for step in steps:
            lines = self._log(step).read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
            self.say(f"  ...   {step.name}: {lines[-1][:140] if lines else 'nothing printed yet'}")

    def _log(self, step: Step) -> Path:
        return self._logs / f"{step.name}.log"

    def _interrupt(self) -> None:
        self._interrupted = True
        self.say("interrupted: ending what runs, then cleaning up")
        with self._lock:
            processes = list(self._processes.items())
        always = {step.name for step in self._steps if step.always}
        for name, process in processes:
            if name not in always and process.poll() is None:
                self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """End a step and its children; it gets time to clean up after itself."""
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(END_GRACE_S)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return


def _judge_pytest(step: Step, code: int, report: Path, seconds: float, remarks: tuple[str, ...]) -> Outcome:
    """Judge by pytest's own report; no report, or no test in it, is a failure."""
    passed = failed = skipped = 0
    if not report.exists():
        return Outcome(step, "failed", seconds, 0, 1, 0, (*remarks, f"pytest ended with {code} and without a report"))
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            remarks += (f"failed: {name}",)
        elif skip is not None:
            skipped += 1
            reason = skip.get("message", "")
            allowed = any(re.search(pattern, reason) for pattern in step.allowed_skips)
            failed += not allowed
            remarks += (f"skipped{' (allowed)' if allowed else ', which is not allowed'}: {name}: {reason}",)
        else:
            passed += 1
    if not passed and not failed:
        failed, remarks = 1, (*remarks, "no test was run")
    if code and not failed:
        failed, remarks = 1, (*remarks, f"pytest ended with {code}")
    return Outcome(step, "failed" if failed else "ok", seconds, passed, failed, skipped, remarks)
