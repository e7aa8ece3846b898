# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests of KVM cores that have a lab host, ``h1`` of the lab ``kvm``, for themselves: they reboot it.

The lab must be up. VMs run on the old core when a test begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkout import NEW_SERIES

from ansible_collections.vmm.live_upgrade.tests.integration.lab.controller import Controller
from ansible_collections.vmm.live_upgrade.tests.integration.lab.kvm_cores import KvmCores, drained, running_on_cores
from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import LabHosts, artifact_on
from vmmlab.artifact import default_artifact, read_artifact
from vmmlab.expect import expect_lab
from vmmlab.fleet import Fleet
from vmmlab.progress import LabError


@dataclass(frozen=True)
class QemuBuilds:
    """The build that VMs start on, and another one that is staged."""

    old: str
    new: str


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Return the lab, which must be up with one host of two VMs."""
    try:
        return expect_lab("kvm", hosts=1, vms=2)
    except LabError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def builds(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> QemuBuilds:
    """Return the builds of QEMU, both staged."""
    controller = Controller(tmp_path_factory.mktemp("builds"), fleet.inventory)
    new = read_artifact(default_artifact(NEW_SERIES))
    done = controller.run("stage", stage_artifact=new.path)
    assert done.exit_status == 0, done.output
    return QemuBuilds(artifact_on(fleet.hosts[0]).build_id, new.build_id)


@pytest.fixture
def controller(tmp_path: Path, fleet: Fleet) -> Controller:
    """Return a controller that knows of nothing that was done before."""
    return Controller(tmp_path / "controller", fleet.inventory)


@pytest.fixture
def lab(fleet: Fleet, builds: QemuBuilds, kvm_cores: KvmCores, controller: Controller) -> LabHosts:
    """Return the host, with its VMs on the old build and the old core, the only one that is loaded, and none chosen for boot.

    What an earlier test left otherwise is started anew.
    """
    hosts = LabHosts(fleet.hosts)
    told = controller.module("h1", "kvm_info")
    cores = {core["build_id"]: core["default"] for core in told["cores"]}
    running = {vm["build_id"] for vm in hosts.before.values()} | {hosts.default_build("h1")}
    if (cores, told["boot"], running) != ({kvm_cores.old: True}, [], {builds.old}):
        with drained(hosts):
            _start_anew(controller, builds, kvm_cores)
    return hosts


def _start_anew(controller: Controller, builds: QemuBuilds, kvm_cores: KvmCores) -> None:
    """Have nothing but the old core on a host without VMs; what is chosen for boot goes as a core does."""
    wanted = [
        (kvm_cores.old, "default"),
        (kvm_cores.new, "absent"),
        (kvm_cores.old, "absent"),
        (kvm_cores.old, "default"),
    ]
    for build_id, state in wanted:
        done = controller.module("h1", "kvm_core", build_id=build_id, state=state)
        assert not done["failed"], done
    done = controller.module("h1", "artifact_default", build_id=builds.old)
    assert not done["failed"], done


@pytest.fixture(scope="session")
def kvm_cores(fleet: Fleet, builds: QemuBuilds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KvmCores]:
    """Return the builds of KVM; the VMs run on the old one, and the new one is staged. All is taken away at the end."""
    controller = Controller(tmp_path_factory.mktemp("kvm"), fleet.inventory)
    with running_on_cores(LabHosts(fleet.hosts), controller) as cores:
        yield cores
