#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers for all hosts of a simulated fleet, from one process that is none of the controller's.

``simulated_hosts.py SOCKET VMS_PER_HOST``. Each connection, from ssh_stand_in.c, is one call of a host: its name, a line feed,
and the program that Ansible sends to its Python. The program is not run: the module's name and arguments are taken out of it and
answered from what is kept of the host, in the form and size of a real answer. It ends when its standard input does.
"""

from __future__ import annotations

import ast
import asyncio
import json
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.judge import Answer, Disk, Snapshot, Vcpu
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Direction, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import VmResult

OLD, NEW = "qemu-10.2.2-0000000000000000", "qemu-11.1.1-1111111111111111"
_STEPS = ["begin", "spawned", "handing-over", "committed", "released"]
_MODULE = re.compile(rb"^module_fqn='ansible_collections\.vmm\.live_upgrade\.plugins\.modules\.(\w+)',$", re.MULTILINE)
_PARAMS = re.compile(rb"^params=(.*),$", re.MULTILINE)
_EXIT_OK, _EXIT_FAILED, _EXIT_NO_SUCH_COMMAND = 0, 1, 127

Arguments = Mapping[str, Any]


def _dice() -> random.Random:
    return random.Random(1)  # noqa: S311  # nothing is kept secret by them


@dataclass
class Host:
    """What is kept of a host: the build of each of its VMs, the default build, and whether an upgrade runs."""

    name: str
    builds: dict[str, str]
    default: str = OLD
    begun: bool = False
    calls: int = 0
    dice: random.Random = field(default_factory=_dice)


def call(host: Host, program: bytes) -> tuple[int, bytes]:
    """Answer one call: the exit status and what is written to standard output."""
    module, params = _MODULE.search(program), _PARAMS.search(program)
    if not module or not params or module.group(1).decode() not in _MODULES:
        return _EXIT_NO_SUCH_COMMAND, b"the simulated host knows no such program\n"
    arguments = json.loads(ast.literal_eval(params.group(1).decode()))["ANSIBLE_MODULE_ARGS"]
    answer = _MODULES[module.group(1).decode()](host, arguments)
    host.calls += 1
    shown = {name: value for name, value in arguments.items() if not name.startswith("_ansible_")}
    told = json.dumps({**answer, "invocation": {"module_args": shown}}).encode()
    return (_EXIT_FAILED if answer.get("failed") else _EXIT_OK), told + b"\n"


def _preflight(host: Host, arguments: Arguments) -> dict[str, Any]:
    verdicts = [
        Verdict(
            name=vm,
            pid=_pid(vm),
            old_build_id=build,
            new_build_id=arguments["build_id"],
            verdict="already" if build == arguments["build_id"] else "go",
            mechanism="vfork",
            mechanism_reason="both builds have it",
            forward=Direction(True),
            backward=Direction(True),
        ).to_dict()
        for vm, build in host.builds.items()
    ]
    return {"changed": False, "failed": False, "vms": verdicts}


def _health(host: Host, arguments: Arguments) -> dict[str, Any]:
    vms = []
    for vm, build in host.builds.items():
        snapshot = Snapshot(
            name=vm,
            pid=_pid(vm),
            build_id=build,
            run_state="running",
            watched_s=0.52,
            vcpus=[Vcpu(index=number, cpu_ns=10_000_000 + number, exits=4000, halted=False) for number in range(4)],
            disks=[Disk(device=f"drive{number}", io_status="ok", failed_operations=0) for number in range(2)],
            answers={"ping": Answer(True, "1 of 1 answered"), "guest_agent": Answer(True, "guest-ping answered")},
        )
        more: dict[str, Any] = {"healthy": True, "problems": [], "pre_existing": [], "regressions": []}
        vms.append({**snapshot.to_dict(), **more})
    return {"changed": False, "failed": False, "healthy": True, "regressions": [], "vms": vms}


def _upgrade(host: Host, arguments: Arguments) -> dict[str, Any]:
    """As with a real host of some VMs, the first call ends before the transaction does and the second one tells its end."""
    build_id = arguments["build_id"]
    wanted = arguments.get("vms") or list(host.builds)
    if not host.begun and any(host.builds[vm] != build_id for vm in wanted):
        host.begun = True
        so_far = [{"name": vm, "steps": _STEPS[:2]} for vm in wanted]
        return {"changed": False, "failed": False, "finished": False, "transaction_id": "t1", "vms": so_far}
    host.begun = False
    results = [_result(host, vm, build_id) for vm in wanted]
    for vm in wanted:
        host.builds[vm] = build_id
    changed = any(result["outcome"] == "upgraded" for result in results)
    return {"changed": changed, "failed": False, "finished": True, "transaction_id": "t1", "vms": results}


def _result(host: Host, vm: str, build_id: str) -> dict[str, Any]:
    if host.builds[vm] == build_id:
        return VmResult(name=vm, outcome="already", old_build_id=build_id, new_build_id=build_id).to_dict()
    result = VmResult(
        name=vm,
        outcome="upgraded",
        reason="both builds have it",
        mechanism="vfork",
        downtime_ms=round(5 * host.dice.lognormvariate(0, 0.3), 3),
        downtime_source="qmp-events",
        pause_budget_ms=200,
        total_ms=112.5,
        extra_memory_mib=25.1,
        cpu_s=0.06,
        old_build_id=host.builds[vm],
        new_build_id=build_id,
        old_pid=_pid(vm),
        new_pid=_pid(vm) + 1000,
    )
    return {**result.to_dict(), "steps": _STEPS}


def _default(host: Host, arguments: Arguments) -> dict[str, Any]:
    previous, host.default = host.default, arguments["build_id"]
    return {"changed": previous != host.default, "failed": False, "previous": previous}


def _pid(vm: str) -> int:
    return 1000 + int(vm.rpartition("-vm")[2])


_MODULES: Mapping[str, Callable[[Host, Arguments], dict[str, Any]]] = {
    "vm_preflight": _preflight,
    "vm_health": _health,
    "vm_upgrade": _upgrade,
    "artifact_default": _default,
}


async def serve(path: str, vms_per_host: int) -> None:
    """Answer until standard input ends, then tell on standard output how many calls there were and what the VMs run."""
    hosts: dict[str, Host] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, _line_feed, program = (await reader.read(-1)).partition(b"\n")
        host = name.decode()
        if host not in hosts:
            hosts[host] = Host(host, {f"{host}-vm{number}": OLD for number in range(vms_per_host)})
        status, output = call(hosts[host], program)
        writer.write(bytes([status]) + output)
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path, backlog=1024):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    builds = [build for host in hosts.values() for build in host.builds.values()]
    print(json.dumps({"calls": sum(host.calls for host in hosts.values()), "moved": builds.count(NEW)}))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
