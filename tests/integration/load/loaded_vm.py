# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM with the loaded guest, which the engine moves from process to process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.vm_upgrade import VmUpgrade
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover_one
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.tests.integration.load.clients import EchoStream
from ansible_collections.vmm.live_upgrade.tests.integration.load.disks import DiskSet
from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import (
    COUNTER_OFFSET,
    ECHO_PORT,
    GUEST_ADDRESS,
    MEMORY_MIB,
    STATUS_PAGE,
    Status,
    boot_arguments,
    cpu_arguments,
    linux_accel,
    parse_status,
)
from ansible_collections.vmm.live_upgrade.tests.integration.load.namespace import TapNamespace
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu

MACHINE = "pc-q35-10.2"
TAP = (
    *("-netdev", f"tap,id=net0,ifname={TapNamespace.TAP},script=no,downscript=no,vhost=off"),
    *("-device", "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:02,romfile="),
)
_BUILD = "qemu-0.0.0-0000000000000000"
_UP_S = 60.0
_POLL_S = 0.02


class LoadedVm:
    """One guest; ``pid`` is the process that runs it now."""

    def __init__(
        self, binary: Path, directory: Path, namespace: TapNamespace | None, disks: DiskSet | None = None
    ) -> None:
        """Start it and return when its guest is at work.

        ``namespace`` has the tap of its NIC; None for a VM without one. Without ``disks`` it has only its own one.
        """
        self.directory = directory
        self.serial_path = directory / "serial.sock"
        accel = linux_accel()
        self.qemu = LocalQemu(
            binary,
            directory,
            accel=accel,
            name=f"load-{uuid.uuid4().hex[:8]}",
            machine=f"{MACHINE},hpet=off",
            memory_mib=MEMORY_MIB,
            guest=None,
            counter_offset=COUNTER_OFFSET,
            wrapper=namespace.wrapper if namespace else (),
            extra=[
                *cpu_arguments(accel),
                *boot_arguments(len(disks.images) if disks else 1),
                *("-serial", f"file:{directory}/console", "-serial", f"unix:{self.serial_path},server=on,wait=off"),
                *(TAP if namespace else ()),
                *(disks.arguments if disks else ()),
            ],
        )
        self.pid = self.qemu.pid
        self._namespace = namespace
        self.results: list[VmResult] = []
        try:
            self._await_guest()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LoadedVm:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def status(self) -> Status:
        """What the guest says of itself now."""
        status = parse_status(self.qemu.read_ram(STATUS_PAGE, 4096))
        assert status is not None, f"the guest is not up: {(self.directory / 'console').read_text(errors='replace')}"
        return status

    def wait_records(self, more: int = 20) -> None:
        """Return when every disk got ``more`` further records. Raises ``AssertionError`` on anything that failed."""
        first, deadline = self.status(), time.monotonic() + _UP_S
        while any(now.records < was.records + more for now, was in zip(self.status().disks, first.disks)):
            self.assert_sound()
            assert time.monotonic() < deadline, f"the guest writes no more records: {self.status()}"
            time.sleep(_POLL_S)
        self.assert_sound()

    def assert_sound(self) -> None:
        """Nothing failed in the guest so far."""
        assert self.status().failures == 0, (self.directory / "console").read_text(errors="replace")

    def stream(self) -> EchoStream:
        """Return a new checked TCP stream into the guest."""
        assert self._namespace, "it has no NIC"
        return EchoStream(self._namespace.connect((GUEST_ADDRESS, ECHO_PORT), 30))

    def facts(self) -> Vm:
        """What discovery tells of the process that runs the guest."""
        facts = discover_one(self.pid)
        assert facts is not None, f"process {self.pid} runs no VM"
        return facts

    def move(self, build: Path) -> VmResult:
        """Have the engine move the VM to ``build`` by ``vfork``, whatever comes of it."""
        directory = self.directory / "transactions" / uuid.uuid4().hex
        (directory / "logs").mkdir(parents=True)
        run_dir = Path(f"/run/vmm-{uuid.uuid4().hex[:8]}")
        probe = {"ram_word": {"backend": "ram0", "offset": COUNTER_OFFSET}}
        request = UpgradeRequest(
            _BUILD,
            run_dir=str(run_dir),
            probes={self.qemu.name: probe},
            downtime_budget_ms=20000,
        )
        journal = Journal(directory)
        try:
            result = VmUpgrade(self.facts(), build, "vfork", request, directory, journal).run()
        finally:
            journal.close()
            subprocess.run(["rm", "-r", str(run_dir)], check=True)
        self.results.append(result)
        self.pid = result.new_pid or 0
        return result

    def upgrade(self, build: Path) -> VmResult:
        """Move the VM; it must arrive."""
        result = self.move(build)
        assert (result.outcome, result.warnings) == ("upgraded", []), (result, self.qemu.log_path.read_text())
        if result.old_pid == self.qemu.pid:
            self.qemu.process.wait(10)
        return result

    def rehearse(self, build: Path) -> VmResult:
        """Move the VM to ``build``, but as a rehearsal; the engine itself has no such wish."""
        execute = QmpClient.execute

        def rehearsing(client: QmpClient, command: str, arguments: Any = None, timeout_s: Any = None) -> Any:
            more = {"rehearse": True} if command == "cpr-vfork-set" else {}
            return execute(client, command, {**(arguments or {}), **more}, timeout_s)

        with mock.patch.object(QmpClient, "execute", rehearsing):
            return self.move(build)

    def quit(self) -> Status:
        """End QEMU in order, with all requests done, and return the guest's last words."""
        self.qemu.execute("stop")
        last = self.status()
        pidfd = os.pidfd_open(self.pid)
        self.qemu.execute("quit")
        self._await_end(pidfd)
        return last

    def close(self) -> None:
        """End whatever process runs the guest. Idempotent."""
        if self.pid != self.qemu.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.qemu.stop()

    def _await_end(self, pidfd: int) -> None:
        deadline = time.monotonic() + 30
        if self.pid == self.qemu.pid:
            self.qemu.process.wait(30)
        while os.path.exists(f"/proc/{self.pid}"):
            assert time.monotonic() < deadline, f"process {self.pid} does not end"
            time.sleep(_POLL_S)
        os.close(pidfd)

    def _await_guest(self) -> None:
        deadline = time.monotonic() + _UP_S
        while parse_status(self.qemu.read_ram(STATUS_PAGE, 4096)) is None:
            assert self.qemu.process.poll() is None, self.qemu.log_path.read_text()
            assert time.monotonic() < deadline, (self.directory / "console").read_text(errors="replace")
            time.sleep(_POLL_S)
        self.wait_records(1)


def build_of(binary: Path) -> Path:
    """The directory of a build, by its program."""
    return binary.resolve().parent.parent


def faulty_build(directory: Path, binary: Path, fault: str) -> Path:
    """Make a build of ``binary``'s whose program does ``fault`` ("POINT:ACTION") when a guest is handed to it."""
    build = directory / re.sub(r"\W", "-", fault)
    (build / "bin").mkdir(parents=True)
    (build / "share").symlink_to(build_of(binary) / "share")
    program = build / "bin" / binary.name
    program.write_text(f'#!/bin/sh\nexec {binary} "$@" -global migration.x-cpr-vfork-fault={fault}\n')
    program.chmod(0o755)
    return build


def held(pid: int) -> dict[str, Any]:
    """What a process holds: descriptors by kind, threads, memory in KiB."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name.lower(): int(kib) for name, kib in re.findall(r"^(Rss|Pss|Private_Dirty):\s+(\d+) kB", rollup, re.M)}
    return {
        "fds": len(links),
        "memfds": sum("memfd:" in link for link in links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        **sizes,
    }
