# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hosts whose VMs run on a core of KVM in place of the kernel's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkout import ARTIFACTS, CACHE

from kmodlab.root import get_build_root
from vmmlab.cache import Cache
from vmmlab.kernel import get_kernel
from vmmlab.progress import Progress

from .controller import Controller, Finished
from .lab_hosts import LabHosts

_BUILD = Path(__file__).with_name("build_kvm_cores.yml")
_BOOT_S = 240


@dataclass(frozen=True)
class KvmCores:
    """The builds of KVM that all hosts have: the one that VMs are on when a test begins, and the one they are moved to."""

    old: str
    new: str


@contextmanager
def running_on_cores(hosts: LabHosts, controller: Controller) -> Iterator[KvmCores]:
    """Have the VMs of all hosts run on the old core, with the new one staged; at the end as before.

    Between the kernel's own KVM and cores a host has to be empty: the VMs end, and are started again.
    """
    built = _build(controller)
    for build in built.values():
        _succeed(controller.run("stage", stage_kvm_artifact=build["artifact"]))
    cores = KvmCores(built["old"]["build_id"], built["new"]["build_id"])
    with drained(hosts):
        _succeed(controller.run("kvm", kvm_artifact=built["old"]["artifact"], kvm_state="default"))
    yield cores
    with drained(hosts):
        for name in hosts.names:
            for build_id in (cores.new, cores.old):
                gone = controller.module(name, "kvm_core", build_id=build_id, state="absent")
                assert not gone["failed"], gone
        hosts.each(lambda host: hosts.sh(host.name, "systemctl restart vmm-lab-setup"))


def name_of(build_id: str) -> str:
    """Name of the core of a KVM build."""
    return build_id.rpartition("-")[2]


def _build(controller: Controller) -> dict[str, Any]:
    cache, progress = Cache(CACHE / "lab"), Progress()
    kernel = get_kernel(cache, "host", progress)
    told = controller.folder / "cores.json"
    _succeed(
        controller.run(
            str(_BUILD),
            build_release=kernel.release,
            build_root=get_build_root(cache, kernel, progress),
            build_dest=ARTIFACTS,
            build_told=told,
        )
    )
    built: dict[str, Any] = json.loads(told.read_text())
    return built


@contextmanager
def drained(hosts: LabHosts) -> Iterator[None]:
    """End all VMs for the time being; after it ``hosts.before`` is how they are then."""
    hosts.each(lambda host: hosts.sh(host.name, "systemctl stop 'vmm-lab-vm@*'"))
    yield
    hosts.each(lambda host: hosts.sh(host.name, f"systemctl start {' '.join(vm.unit for vm in host.vms)}"))
    hosts.before = hosts.look(wait_s=_BOOT_S)


def _succeed(done: Finished) -> None:
    assert done.exit_status == 0, done.output
