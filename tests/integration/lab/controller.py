# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller: a folder to run Ansible in, with the checkout's collection and the lab's inventory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from checkout import ROOT, environment

SCHEMA = ROOT / "docs" / "upgrade.schema.json"
_LIMIT_S = 1200
_END_GRACE_S = 60


@dataclass(frozen=True)
class Finished:
    """A command of Ansible that ended."""

    exit_status: int
    output: str

    @property
    def words(self) -> str:
        """What was said, without the line breaks that Ansible puts into it."""
        return " ".join(self.output.split())


class Controller:
    """Runs Ansible. Two of them know nothing of each other: reports, journals and locks are in ``folder``."""

    def __init__(self, folder: Path, inventory: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._inventories = [inventory]
        self._environment = environment(
            ANSIBLE_CALLBACKS_ENABLED="vmm.live_upgrade.progress",
            ANSIBLE_NOCOLOR="1",
            ANSIBLE_PIPELINING="1",
            XDG_STATE_HOME=str(folder / "state"),
        )
        self._environment.pop("ANSIBLE_CONFIG")

    def set_host(self, host: str, **variables: Any) -> None:
        """Give ``host`` variables in place of those of the lab's inventory."""
        inventory = self.folder / f"{host}.json"
        inventory.write_text(json.dumps({"hypervisors": {"hosts": {host: variables}}}))
        self._inventories.append(inventory)

    def start(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        """Start ``vmm.live_upgrade.<playbook>``, or the playbook of that path, in a process group of its own."""
        name = playbook if playbook.endswith(".yml") else f"vmm.live_upgrade.{playbook}"
        return self._start("ansible-playbook", name, "-e", json.dumps(variables, default=str), *arguments)

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Finished:
        """Run a playbook to its end."""
        return self.wait(self.start(playbook, *arguments, **variables))

    def module(self, host: str, module: str, **arguments: Any) -> dict[str, Any]:
        """Run one module of the collection on ``host`` and return its answer, with ``failed`` as Ansible sees it."""
        given = ["-a", json.dumps(arguments, default=str)] if arguments else []
        done = self.wait(self._start("ansible", host, "-m", f"vmm.live_upgrade.{module}", *given))
        _before, _mark, answer = done.output.partition(f"{host} | ")
        assert "{" in answer, f"{module} gave no answer: {done.output}"
        result: dict[str, Any] = json.JSONDecoder().raw_decode(answer[answer.index("{") :])[0]
        return {**result, "failed": done.exit_status != 0}

    def wait(self, process: subprocess.Popen[str]) -> Finished:
        """Wait for the end of what was started."""
        try:
            output, _none = process.communicate(timeout=_LIMIT_S)
        except BaseException:
            self.end(process)
            raise
        return Finished(process.returncode, output)

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        """End what was started, if it still runs. Ansible gets time to write its report."""
        if process.poll() is None:
            for number in (signal.SIGINT, signal.SIGKILL):
                os.killpg(process.pid, number)
                try:
                    process.communicate(timeout=_END_GRACE_S)
                    return
                except subprocess.TimeoutExpired:
                    continue

    def report(self, name: str = "upgrade.json") -> dict[str, Any]:
        """Return a report, which is valid."""
        report: dict[str, Any] = json.loads((self.folder / "build" / "results" / name).read_text())
        jsonschema.validate(report, json.loads(SCHEMA.read_text()))
        return report

    def has_report(self, name: str = "upgrade.json") -> bool:
        """Tell whether there is one."""
        return (self.folder / "build" / "results" / name).exists()

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        inventories = [part for path in self._inventories for part in ("-i", str(path))]
        return subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *inventories, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    """Return the outcome of each VM of a report, by name."""
    return {vm["name"]: vm["outcome"] for vm in report["vms"]}


def host_outcomes(report: dict[str, Any]) -> dict[str, str]:
    """Return the outcome of each host of a report, by name."""
    return {host["name"]: host["outcome"] for host in report["hosts"]}


def verdicts(report: dict[str, Any]) -> list[str | None]:
    """Return the verdict on each wave, None for one that was not judged."""
    return [wave["gate"] and wave["gate"]["verdict"] for wave in report["waves"]]
