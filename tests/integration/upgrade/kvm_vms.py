# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs on this machine's KVM, each opened through the node of a core, and what is asked about them.

As root: the nodes are made here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_B, CORE_A, KvmWorld

from .conftest import NIC, Host

ONE_MECHANISM = pytest.mark.parametrize("host", ["vfork"], indirect=True)


def start_on(host: Host, cores: KvmWorld, core: str = CORE_A, **options: Any) -> LocalQemu:
    """A VM on the node of ``core``."""
    return host.start_vm(accel=f"kvm,device={cores.node(core)}", **{"extra": NIC, **options})


def move(host: Host, cores: KvmWorld, kvm_build_id: str | None, **values: Any) -> dict[str, Any]:
    """Upgrade the host's one VM and return the result."""
    (result,) = host.upgrade(kvm_build_id=kvm_build_id, kvm_root=str(cores.root), **values).values()
    return result


def judge(host: Host, cores: KvmWorld, kvm_build_id: str | None = BUILD_B, **values: Any) -> Verdict:
    (judged,) = judge_host(preflight(host, cores, kvm_build_id, **values))
    return judged.verdict


def preflight(host: Host, cores: KvmWorld, kvm_build_id: str | None, **values: Any) -> PreflightRequest:
    defaults: dict[str, Any] = {"state_dir": str(host.state_dir), "vms": [vm.name for vm in host.vms]}
    defaults.update(build_id=host.new, kvm_build_id=kvm_build_id, kvm_root=str(cores.root), mechanism=host.mechanism)
    return PreflightRequest(**{**defaults, **values})


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.refusals}


def nodes_open(pid: int) -> set[str]:
    """The device nodes of KVM that a process has open, by what the kernel says."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {link for link in links if "/dev/kvm" in link}
