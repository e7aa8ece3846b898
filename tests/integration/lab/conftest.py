# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests of the product on the hosts of the lab ``tests``, over ssh, with real units and KVM.

The lab must be up. Every test begins with all VMs on the old build, which is also what new VMs start on: what an earlier
test left otherwise is moved back first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import CACHE, NEW_SERIES

from vmmlab.artifact import default_artifact, read_artifact
from vmmlab.expect import expect_lab
from vmmlab.fleet import Fleet
from vmmlab.progress import LabError

from .controller import Controller
from .kvm_cores import KvmCores, running_on_cores
from .lab_hosts import Builds, LabHosts, artifact_on

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Return the lab, which must be up with three hosts of two VMs."""
    try:
        return expect_lab("tests", hosts=3, vms=2)
    except LabError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def builds(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Return the builds, staged on all hosts; the faulty one is built here when it is not yet."""
    controller = Controller(tmp_path_factory.mktemp("builds"), fleet.inventory)
    told = controller.folder / "faulty.json"
    # In a folder of its own: the lab takes the newest artifact of a series where the others are.
    dest = CACHE / "test-artifacts"
    done = controller.run(
        str(HERE / "build_fault_on_load.yml"), build_series=NEW_SERIES, build_dest=dest, build_told=told
    )
    assert done.exit_status == 0, done.output
    builds = Builds(
        old=artifact_on(fleet.hosts[0]),
        new=read_artifact(default_artifact(NEW_SERIES)),
        faulty=read_artifact(Path(json.loads(told.read_text())["artifact"])),
    )
    for artifact in (builds.new, builds.faulty):
        done = controller.run("stage", stage_artifact=artifact.path)
        assert done.exit_status == 0, done.output
    return builds


@pytest.fixture
def controller(tmp_path: Path, fleet: Fleet) -> Controller:
    """Return a controller that knows of nothing that was done before."""
    return Controller(tmp_path / "controller", fleet.inventory)


@pytest.fixture
def other_controller(tmp_path: Path, fleet: Fleet) -> Controller:
    """Return another one."""
    return Controller(tmp_path / "other", fleet.inventory)


@pytest.fixture
def lab(fleet: Fleet, builds: Builds, tmp_path: Path) -> LabHosts:
    """Return the hosts, with all VMs running on the old build."""
    return _on_old_build(fleet, builds, Controller(tmp_path / "setup", fleet.inventory))


@pytest.fixture(scope="module")
def kvm_cores(fleet: Fleet, builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KvmCores]:
    """Return the builds of KVM; the VMs of all hosts run on the old one."""
    controller = Controller(tmp_path_factory.mktemp("kvm"), fleet.inventory)
    with running_on_cores(_on_old_build(fleet, builds, controller), controller) as cores:
        yield cores


@pytest.fixture(scope="session", autouse=True)
def leave_as_found(fleet: Fleet, builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end, move back what the last test moved: others use the lab too."""
    yield
    _on_old_build(fleet, builds, Controller(tmp_path_factory.mktemp("end"), fleet.inventory))


def _on_old_build(fleet: Fleet, builds: Builds, controller: Controller) -> LabHosts:
    hosts = LabHosts(fleet.hosts)
    old = builds.old.build_id
    elsewhere = [
        name
        for name, default in hosts.each(lambda host: hosts.default_build(host.name)).items()
        if default != old or any(hosts.before[vm]["build_id"] != old for vm in hosts.vms(name))
    ]
    if not elsewhere:
        return hosts
    done = controller.run("rollback", rollback_hosts=",".join(elsewhere), rollback_build=old)
    assert done.exit_status == 0, done.output
    return LabHosts(fleet.hosts)
