# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest that is handed over by the mode cpr-vfork, by its monitor alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory, firmware

MACHINE = "pc-q35-10.2"
NIC = ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile="]
FAULT = "migration.x-cpr-vfork-fault"
ENDS = {"running", "aborted", "lost", "stranded"}
# For the command of the new process: it gets as far as it can before the pause, and no further.
HANGS = ("-global", f"{FAULT}=ready:hang")


class Vm:
    """One guest, which process after process runs; the monitor is that of the present one."""

    def __init__(self, qemu: LocalQemu) -> None:
        self.qemu = qemu
        self.pid = qemu.pid
        self.monitor = qemu.monitor()
        self.child = 0
        self._hops = 0

    def command(self, binary: Path, *more: str) -> list[str]:
        """The VM's command line for ``binary``, with a monitor of its own."""
        self._hops += 1
        rest = list(self.qemu.argv[1 + len(firmware(self.qemu.binary)) :])
        at = rest.index("-qmp")
        rest[at + 1] = f"unix:{self._socket},server=on,wait=off"
        return [str(binary), *firmware(binary), *rest, *more]

    def begin(self, command: list[str], **settings: Any) -> None:
        self.monitor.execute("migrate-set-parameters", {"mode": "cpr-vfork", "cpr-exec-command": command})
        self.monitor.execute("cpr-vfork-set", settings)
        self.monitor.drain_events()
        self.monitor.execute("migrate", {})

    def end(self) -> dict[str, Any]:
        """Wait for the end of the hand-over and return what ``query-cpr-vfork`` says of it."""
        while True:
            event = self.monitor.wait_event({"CPR_VFORK"}, 40)
            if event.data["phase"] in ENDS:
                return dict(self.monitor.execute("query-cpr-vfork"))

    def hand_over(self, binary: Path, *more: str, **settings: Any) -> dict[str, Any]:
        self.begin(self.command(binary, *more), **settings)
        return self.end()

    def follow(self, info: dict[str, Any]) -> None:
        """Go on with the new process; the old one is ended as the engine does it."""
        os.kill(self.pid, signal.SIGKILL)
        if self.pid == self.qemu.pid:
            self.qemu.process.wait(10)
        self.monitor.close()
        self.pid = info["child-pid"]
        self.monitor = QmpClient.connect(self._socket)

    def assert_runs_on(self) -> None:
        """The guest counts in the process that had it before, and the new one is gone and reaped."""
        self.qemu.wait_counting()
        assert self.monitor.execute("query-status")["status"] == "running"
        child = self.monitor.execute("query-cpr-vfork")["child-pid"]
        assert not os.path.exists(f"/proc/{child}"), "the new process is left over"

    @property
    def _socket(self) -> str:
        return str(self.qemu.directory / f"qmp{self._hops}.sock")


class VmFactory:
    """Starts VMs on the older build unless told otherwise; ``close`` leaves their monitors, and whoever made the factory
    of QEMUs ends these."""

    def __init__(self, start_qemu: QemuFactory, binary: Path) -> None:
        self._start_qemu = start_qemu
        self._binary = binary
        self._vms: list[Vm] = []

    def __call__(self, binary: Path | None = None, **options: Any) -> Vm:
        """Start a VM whose guest counts; ``options`` are those of ``LocalQemu``."""
        name = f"vm{len(self._vms)}"
        vm = Vm(self._start_qemu(name, binary or self._binary, machine=MACHINE, **{"extra": NIC, **options}))
        self._vms.append(vm)
        if options.get("shared_ram", True):
            vm.qemu.wait_counting()
        return vm

    def close(self) -> None:
        for vm in self._vms:
            vm.monitor.close()


def lives(pid: int) -> bool:
    """Tell whether the process is there; a zombie is."""
    return os.path.exists(f"/proc/{pid}")


def await_that(condition: Callable[[], bool]) -> None:
    """Poll: what is awaited here sends no event."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
