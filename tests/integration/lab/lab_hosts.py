# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as tests see it: its hosts, what runs on them, and the proof that no guest noticed anything."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from checkout import ARTIFACTS, OLD_SERIES

from vmmlab.artifact import Artifact, read_artifact
from vmmlab.host import Host
from vmmlab.verify import judge, look_at_host

STATE_DIR = "/var/lib/vmm-live-upgrade"
_AT_STEP = Path(__file__).with_name("at_step.py")
_SCRIPT_S = 120
_FAULTS = "/run/vmm-fault"

Look = dict[str, dict[str, Any]]
"""What the lab's verify tool says of VMs, by name."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Builds:
    """The build that VMs are on when a test begins, the one they are moved to, and one with ``LabHosts.faults``."""

    old: Artifact
    new: Artifact
    faulty: Artifact


class LabHosts:
    """Some hosts of the lab. ``before`` is how their VMs were when this was made."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = {host.name: host for host in hosts}
        self.before = self.look()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    @property
    def names(self) -> list[str]:
        """The names of the hosts, in the order of the inventory."""
        return list(self._hosts)

    def vms(self, *hosts: str) -> list[str]:
        """The names of the VMs of ``hosts``, or of all."""
        return [vm.name for name in hosts or self._hosts for vm in self._hosts[name].vms]

    def look(self, with_disk: bool = False, wait_s: float = 0.0) -> Look:
        """Look at all VMs; for those that are still booting, wait."""
        looks = self.each(lambda host: look_at_host(host, with_disk, wait_s))
        return {vm["vm"]: vm for seen in looks.values() for vm in seen}

    def prove(self, rebooted: Collection[str] = (), wait_s: float = 0.0) -> Look:
        """Assert that every guest counts on in the same boot and that its disk holds what it wrote; return the look.

        On the hosts ``rebooted`` it must be another boot.
        """
        after = self.look(with_disk=True, wait_s=wait_s)
        wrong = {}
        for name, vm in after.items():
            anew = vm["host"] in rebooted
            failures = judge(vm, None if anew else self.before[name])
            if anew and "page" in vm and vm["page"]["nonce"] == self.before[name]["page"]["nonce"]:
                failures.append("it was not booted again")
            if failures:
                wrong[name] = failures
        assert not wrong
        return after

    def prove_untouched(self, *hosts: str) -> Look:
        """As ``prove``, and the VMs of ``hosts`` (of all) are the same processes on the same build; return the look."""
        after = self.prove()
        for name in self.vms(*hosts):
            assert process(after[name]) == process(self.before[name]), f"{name} was touched"
        return after

    def each(self, work: Callable[[Host], _T]) -> dict[str, _T]:
        """Do ``work`` for all hosts at once, and return what came of it by the name of the host."""
        with ThreadPoolExecutor() as pool:
            return dict(zip(self._hosts, pool.map(work, self._hosts.values())))

    def sh(self, host: str, script: str, check: bool = True) -> str:
        """Run a shell script on a host and return what it prints; a failure is an error unless ``check`` is false."""
        done = self._hosts[host].access.run("sh", "-s", stdin=script, timeout_s=_SCRIPT_S)
        assert not check or done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def transactions(self, host: str) -> list[str]:
        """The transactions that a host knows of."""
        return self.sh(host, f"ls {STATE_DIR}/transactions 2>/dev/null || true").split()

    def default_build(self, host: str) -> str:
        """The build that new VMs of a host start on."""
        return self.sh(host, f"readlink {STATE_DIR}/builds/default")

    @contextmanager
    def faults(self, of: Mapping[str, str]) -> Iterator[None]:
        """Have the faulty build fail where VMs are loaded: by name, ``crash``, or milliseconds that it takes longer."""
        by_host = {
            host: [f"printf {fault} >{_FAULTS}/{vm}" for vm, fault in of.items() if vm in self.vms(host)]
            for host in self.names
        }
        try:
            for host, commands in by_host.items():
                self.sh(host, "; ".join([f"mkdir -p {_FAULTS}", *commands]))
            yield
        finally:
            self.each(lambda host: self.sh(host.name, f"rm -rf {_FAULTS}"))

    @contextmanager
    def at_step(self, host: str, vm: str, step: str, then: str) -> Iterator[AtStep]:
        """Have ``host`` do something when a transaction that is yet to begin comes to ``step`` of ``vm``.

        ``then`` is an action of ``at_step.py``. It watches over a connection of its own, since others may be cut.
        """
        access = replace(self._hosts[host].access, control_path=Path("none"))
        request = json.dumps({"vm": vm, "step": step, "then": then})
        process = subprocess.Popen(
            access.command("python3", "-", f"'{request}'"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(_AT_STEP.read_text())
            process.stdin.close()
            assert process.stdout.readline().strip() == "watching"
            yield AtStep(process)
        finally:
            process.kill()
            process.wait()


class AtStep:
    """A watch on a host. See ``LabHosts.at_step``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self) -> str:
        """Wait until the step was seen and the action was done; return what the action says."""
        assert self._process.stdout is not None and self._process.stderr is not None
        said = self._process.stdout.readline().strip()
        assert said, f"the step was not seen: {self._process.stderr.read()}"
        return said


def artifact_on(host: Host) -> Artifact:
    """The artifact that the host's VMs started on: by now there may be a newer one of its series."""
    listed = host.access.run("ls", f"{STATE_DIR}/builds").stdout.split()
    (build_id,) = [name for name in listed if name.startswith(f"qemu-{OLD_SERIES}.")]
    return read_artifact(ARTIFACTS / f"{build_id}.tar.gz")


def process(vm: dict[str, Any]) -> tuple[list[int], str]:
    """The process that runs a VM, and its build."""
    return vm["pids"], vm["build_id"]


def builds_of(look: Look, *vms: str) -> set[str]:
    """The builds that VMs run: of those named, or of all."""
    return {look[name]["build_id"] for name in vms or look}
