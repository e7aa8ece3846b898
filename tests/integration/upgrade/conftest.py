# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine as a host: both builds staged, VMs of the old one, transactions of a detached engine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import COUNTER_OFFSET, LocalQemu, QemuFactory
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld

MACHINE = "pc-q35-10.2"
NIC = ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile="]


class Host:
    """This machine as a host with both builds staged, and VMs whose names are this test's own."""

    def __init__(
        self, directory: Path, builds: dict[str, str], start_qemu: QemuFactory, qemu_old: Path, mechanism: str
    ) -> None:
        self.mechanism = mechanism
        self.state_dir = directory / "state"
        self.run_dir = Path(f"/tmp/vmm-{os.getpid()}-{time.monotonic_ns() % 10**6}")
        self.old, self.new = builds["10.2"], builds["11.1"]
        self._prefix = f"t{os.getpid()}-{time.monotonic_ns() % 10**6}"
        self._start_qemu = start_qemu
        self._qemu_old = qemu_old
        self.vms: list[LocalQemu] = []

    def start_vm(self, **options: Any) -> LocalQemu:
        name = f"{self._prefix}-vm{len(self.vms) + 1}"
        vm = self._start_qemu(name, binary=options.pop("binary", self._qemu_old), machine=MACHINE, **options)
        self.vms.append(vm)
        if options.get("shared_ram", True):
            vm.wait_counting()
        return vm

    def request(self, **values: Any) -> UpgradeRequest:
        names = [vm.name for vm in self.vms]
        defaults: dict[str, Any] = {
            "build_id": self.new,
            "state_dir": str(self.state_dir),
            "run_dir": str(self.run_dir),
            "vms": names,
            "downtime_budget_ms": 20000,
            "mechanism": self.mechanism,
            "probes": {name: {"ram_word": {"backend": "ram0", "offset": COUNTER_OFFSET}} for name in names},
        }
        return UpgradeRequest(**{**defaults, **values})

    def upgrade(self, **values: Any) -> dict[str, dict[str, Any]]:
        """Run a whole transaction and return the results by the name of the VM."""
        transactions = Transactions(self.request(**values))
        progress = transactions.run(transactions.find() or transactions.begin(), 120)
        assert progress.result is not None, "the engine did not end"
        assert progress.result["error"] is None, progress.result["error"]
        return {vm["name"]: vm for vm in progress.result["vms"]}

    def builds_run(self) -> list[str | None]:
        return [plan.vm.build_id for plan in plan_host(self.request())]

    def break_build(self, script: str) -> None:
        """Replace the staged new binary by a script that behaves as QEMU until it is to run a VM.

        The manifest is made to agree: preflight would find the change, and this is about what happens when it does not.
        """
        build = self.state_dir / "builds" / self.new
        binary = build / "bin" / "qemu-system-x86_64"
        real = binary.with_name("real")
        binary.rename(real)
        binary.write_text(f'#!/bin/bash\nreal={real}\n{script}\nexec $real "$@"\n')
        binary.chmod(0o755)
        manifest = json.loads((build / "manifest.json").read_text())
        manifest["files"]["bin/qemu-system-x86_64"] = hashlib.sha256(binary.read_bytes()).hexdigest()
        (build / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def builds() -> dict[str, Path]:
    """The newest artifact of each series."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vmm-live-upgrade" / "artifacts"
    newest = {}
    for series in ("10.2", "11.1"):
        found = sorted(cache.glob(f"qemu-{series}.*.tar.gz"), key=lambda path: path.stat().st_mtime)
        assert found, f"no artifact of QEMU {series} in {cache}; make build-qemu"
        newest[series] = found[-1]
    return newest


@pytest.fixture(params=["vfork", "cpr-transfer"])
def host(
    request: pytest.FixtureRequest, tmp_path: Path, builds: dict[str, Path], start_qemu: QemuFactory
) -> Iterator[Host]:
    store = BuildStore(tmp_path / "state")
    staged = {series: store.stage(artifact) for series, artifact in builds.items()}
    ids = {series: build.manifest.build_id for series, build in staged.items()}
    binary = staged["10.2"].path / "bin" / "qemu-system-x86_64"
    made = Host(tmp_path, ids, start_qemu, binary, request.param)
    yield made
    subprocess.run(["rm", "-rf", str(made.run_dir)], check=True)


@pytest.fixture
def cores(tmp_path: Path) -> KvmWorld:
    """KVM cores A, the default, and B, both staged for ``host`` and loaded."""
    world = KvmWorld(tmp_path)
    world.core(CORE_A, BUILD_A)
    world.core(CORE_B, BUILD_B)
    world.load(CORE_A, CORE_B)
    return world


def host_processes(vm_name: str) -> list[int]:
    """Processes that bear the VM's name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"guest={vm_name}".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)
