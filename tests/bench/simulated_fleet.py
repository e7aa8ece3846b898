# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet whose controller side is real and whose hosts are one process: a rollout over it, and what that cost.

The controller is ansible-playbook as its users run it, with the collection's own playbook and action plugins and Ansible's ssh
connection. Only the ssh client is another one (ssh_stand_in.c), and what it reaches is simulated_hosts.py. That process is none
of the controller's, so what it uses is not counted; what the stand-ins for ssh use is.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.tests.bench.cost import adopt_orphans
from ansible_collections.vmm.live_upgrade.tests.bench.simulated_hosts import NEW

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1] / "build" / "tree"
FORKS = 20
_LOOK_EVERY_S = 2.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What a rollout cost the controller.

    ``main_cpu_s`` is that of the process ansible-playbook, which works for one host at a time however many forks there are; the
    rest is that of its workers and what they start. ``peak_mib``: the most that all of them held together (PSS), of what was seen
    every two seconds.
    """

    hosts: int
    vms: int
    controller_cpu_s_per_host: float
    wall_s: float
    main_cpu_s: float
    peak_mib: float
    peak_mib_per_host: float
    calls_per_host: float
    forks: int

    def to_dict(self) -> dict[str, Any]:
        """Return what the results have of it."""
        return asdict(self)


class NotUpgraded(Exception):
    """The rollout did not do what its cost was asked of, so that the figures would be those of something else."""


def roll_out(root: Path, hosts: int, vms_per_host: int, tracer: tuple[str, ...] = ()) -> Cost:
    """Upgrade a new fleet below the new folder ``root``, all waves of the default plan. Raises ``NotUpgraded``.

    ``tracer``: a command that ansible-playbook is started by, to profile it.
    """
    root.mkdir(parents=True)
    _build_stand_in(root / "ssh")
    (root / "inventory.json").write_text(json.dumps(_inventory(hosts, vms_per_host)))
    with _hosts(root, vms_per_host) as told, (root / "output.log").open("wb") as output:
        adopt_orphans(True)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = subprocess.Popen(
            [*tracer, *_command(root)], cwd=root, env=_environment(root), stdout=output, stderr=subprocess.STDOUT
        )
        with _Watch(process.pid) as seen:
            status = process.wait()
        wall_s = time.monotonic() - began
        _reap_orphans()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        adopt_orphans(False)
    if status != 0 or told["moved"] != hosts * vms_per_host:
        raise NotUpgraded(
            f"ansible-playbook ended with {status}, {told.get('moved')} of {hosts * vms_per_host} VMs were moved; see "
            f"{root / 'output.log'}"
        )
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(
        hosts=hosts,
        vms=hosts * vms_per_host,
        controller_cpu_s_per_host=round(cpu_s / hosts, 3),
        wall_s=round(wall_s, 1),
        main_cpu_s=round(seen.main_cpu_s, 1),
        peak_mib=round(seen.peak_mib, 1),
        peak_mib_per_host=round(seen.peak_mib / hosts, 3),
        calls_per_host=round(told["calls"] / hosts, 2),
        forks=FORKS,
    )


def _command(root: Path) -> list[str]:
    variables = {
        "upgrade_build": NEW,
        "upgrade_downtime_budget_ms": 200,
        "upgrade_report": str(root / "results" / "upgrade.json"),
    }
    return [
        *(str(Path(sys.executable).with_name("ansible-playbook")), "vmm.live_upgrade.upgrade"),
        *("--inventory", str(root / "inventory.json"), "--forks", str(FORKS), "--extra-vars", json.dumps(variables)),
    ]


def _inventory(hosts: int, vms_per_host: int) -> dict[str, Any]:
    """Hosts with what those of a fleet have: probes for each VM, classes for some."""
    members = {}
    for number in range(hosts):
        name = f"hv{number:05}"
        vms = [f"{name}-vm{vm}" for vm in range(vms_per_host)]
        members[name] = {
            "rack": f"r{number // 20}",
            "vm_probes": {vm: {"ping": f"192.0.2.{vm}"} for vm in vms},
            "vm_classes": {},
        }
    shared = {"ansible_python_interpreter": "/usr/bin/python3"}
    return {"hypervisors": {"hosts": members, "vars": shared}}


def _environment(root: Path) -> dict[str, str]:
    """Ansible as ansible.cfg of the checkout has it, whatever the environment of who measures says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    return {
        **kept,
        "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(TREE),
        "ANSIBLE_HOME": str(root / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(root / "cp"),
        "ANSIBLE_SSH_EXECUTABLE": str(root / "ssh"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "SIMULATED_HOSTS": str(root / "hosts.sock"),
        "XDG_STATE_HOME": str(root / "state"),
    }


def _build_stand_in(target: Path) -> None:
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", target, HERE / "ssh_stand_in.c"], check=True)


@contextlib.contextmanager
def _hosts(root: Path, vms_per_host: int) -> Iterator[dict[str, Any]]:
    """Have the hosts answer. What they tell at their end (``calls``, ``moved``) is in the mapping after the block."""
    command = [sys.executable, str(HERE / "simulated_hosts.py"), str(root / "hosts.sock"), str(vms_per_host)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    told: dict[str, Any] = {}
    try:
        if process.stdout.readline() != "ready\n":
            raise NotUpgraded(f"the simulated hosts did not start: {' '.join(command)}")
        yield told
    finally:
        process.stdin.close()
        told.update(json.loads(process.stdout.read() or "{}"))
        process.wait()


class _Watch:
    """Looks at the process ``pid`` and all below it until the block ends."""

    def __init__(self, pid: int) -> None:
        self.main_cpu_s = 0.0
        self.peak_mib = 0.0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            with contextlib.suppress(OSError):  # ended meanwhile
                self.main_cpu_s = _own_cpu_s(self._pid)
            self.peak_mib = max(self.peak_mib, sum(_pss_mib(pid) for pid in _tree(self._pid)))


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def _pss_mib(pid: int) -> float:
    with contextlib.suppress(OSError):  # ended meanwhile
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _tree(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):  # ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    return found


def _reap_orphans() -> None:
    """What the workers left is counted, too, once it has ended. The hosts' process lives on meanwhile."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
