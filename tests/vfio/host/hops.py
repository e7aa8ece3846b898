# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways in which a VM goes from one QEMU to another."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from host.vm import PATIENCE_S, RUN, Vm, alive, end, spawn

# What QEMU says of a hand-over.
Info = dict[str, Any]
_ENDS = {"running", "aborted", "lost", "stranded"}
FAULT = "migration.x-cpr-vfork-fault"


def vfork(vm: Vm, build: str, *more: str, pause_budget_ms: int = 30000, rehearse: bool = False) -> Info:
    """Hand over by the mode cpr-vfork, follow the VM, and return what its old QEMU says at the end.

    ``more``: further arguments of the new QEMU.
    """
    refusal = begin_vfork(vm, [*vm.next_argv(build), *more], pause_budget_ms, rehearse)
    return refusal or end_vfork(vm, build)


def begin_vfork(vm: Vm, argv: list[str], pause_budget_ms: int = 30000, rehearse: bool = False) -> Info:
    """Start the new QEMU as ``argv``. Returns why not when the old one refuses, else nothing."""
    vm.monitor.execute("migrate-set-parameters", {"mode": "cpr-vfork", "cpr-exec-command": argv})
    settings = {
        "pause-budget": pause_budget_ms,
        "prepare-timeout": int(PATIENCE_S * 1000),
        "rehearse": rehearse,
        "fds": vm.spec.inherited(),
    }
    vm.monitor.execute("cpr-vfork-set", settings)
    vm.monitor.drain_events()
    try:
        vm.monitor.execute("migrate", {})
    except QmpCommandError as refusal:
        return {"phase": "refused", "reason": refusal.description}
    return {}


def begin_stopped(vm: Vm, build: str, point: str, pause_budget_ms: int = 30000) -> int:
    """Start a new QEMU that stops itself at ``point`` of the hand-over, wait until it has, and return its process."""
    refusal = begin_vfork(vm, [*vm.next_argv(build), "-global", f"{FAULT}={point}:stop"], pause_budget_ms)
    if refusal:
        raise RuntimeError(refusal["reason"])
    child = int(vm.monitor.wait_event({"CPR_VFORK"}, PATIENCE_S).data["child-pid"])
    deadline = time.monotonic() + PATIENCE_S
    while not _stopped(child):
        if time.monotonic() > deadline:
            raise RuntimeError("the new QEMU does not come so far")
        time.sleep(0.01)
    return child


def await_end(vm: Vm) -> Info:
    """Wait for the end of a hand-over, and stay with the old QEMU."""
    while vm.monitor.wait_event({"CPR_VFORK"}, PATIENCE_S * 2).data["phase"] not in _ENDS:
        continue
    return dict(vm.monitor.execute("query-cpr-vfork"))


def end_vfork(vm: Vm, build: str) -> Info:
    """Wait for the end of a hand-over, and follow the VM if it has gone."""
    info = await_end(vm)
    if info["phase"] == "running":
        vm.follow(info["child-pid"], build)
    return info


class Transfer:
    """A hand-over by upstream's cpr-transfer, step by step."""

    def __init__(self, vm: Vm, build: str, return_path: bool = True, argv: list[str] | None = None) -> None:
        """``argv``: the command of the new QEMU where it is another than the VM's own."""
        self.vm = vm
        self._build = build
        own = vm.next_argv(build)
        number = vm.generation
        self._sockets = {"main": f"{RUN}/main{number}", "cpr": f"{RUN}/cpr{number}"}
        for path in self._sockets.values():
            if os.path.exists(path):
                os.unlink(path)
        channel = {"channel-type": "cpr", "addr": _address(self._sockets["cpr"])}
        incoming = ("-incoming", f"unix:{self._sockets['main']}", "-incoming", json.dumps(channel))
        capabilities = [{"capability": "return-path", "state": return_path}]
        vm.monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        vm.monitor.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        self.target = spawn([*(argv or own), *incoming])
        self._await(lambda: os.path.exists(self._sockets["cpr"]), "listen")

    def begin(self) -> None:
        """Raises ``QmpCommandError``, and ``QmpDeadError`` when the source does not survive it."""
        channels = [{"channel-type": kind, "addr": _address(path)} for kind, path in self._sockets.items()]
        self.vm.monitor.execute("migrate", {"channels": channels})

    def wait(self) -> str:
        """Wait for the end, and return the state of the migration then."""
        ended = ("completed", "failed", "cancelled")
        deadline = time.monotonic() + PATIENCE_S
        while (status := str(self.vm.monitor.execute("query-migrate").get("status"))) not in ended:
            if time.monotonic() > deadline:
                return f"still {status}"
            time.sleep(0.01)
        return status

    def end(self) -> str:
        """The same, and follow the VM if it has gone."""
        status = self.wait()
        if status == "completed" and alive(self.target.pid):
            self.vm.follow(self.target.pid, self._build)
        else:
            end(self.target.pid)
        return status

    def _await(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.target.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the new QEMU does not {what}")
            time.sleep(0.01)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _address(path: str) -> dict[str, str]:
    return {"transport": "socket", "type": "unix", "path": path}
