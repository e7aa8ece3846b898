# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrade one VM: open what it needs, hand it over, measure, verify, let the old process go. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal, JournalError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.clients import ConnectedClients
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_transfer import CprTransfer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import (
    Committed,
    GuestLost,
    GuestStranded,
    Limits,
    TakenBack,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.pidfile import rewrite_pidfile
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import RamWordWatcher, gap_over
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.source import (
    fetched_descriptors,
    monitor_of,
    opened_source,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.tap import TapState
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.threads import carry_over, read_threads
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmMove
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.recreate import CommandPlan

_MIB = 1 << 20
_STAYS = KvmMove()
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class VmUpgrade:
    """One VM's part of a transaction, in a process of its own."""

    def __init__(
        self,
        vm: Vm,
        build_dir: Path,
        mechanism: str,
        request: UpgradeRequest,
        transaction: Path,
        journal: Journal,
        kvm: KvmMove = _STAYS,
    ) -> None:
        """``build_dir`` is the staged build; ``transaction`` the directory of the journal and the logs."""
        self._vm = vm
        self._build_dir = build_dir
        self._mechanism = mechanism
        self._request = request
        self._journal = journal
        self._kvm = kvm
        self._log_path = transaction / "logs" / f"{vm.name}.log"
        self._workspace = workspace_of(request, transaction.name, vm.name)
        self._qmp_paths = [endpoint.path for endpoint in vm.qmp_endpoints]
        self._committed = False
        self._threads: dict[str, dict[str, Any]] = {}
        self._budget = request.budgets().of(vm.name)
        self._result = VmResult(
            name=vm.name,
            outcome="failed",
            mechanism=mechanism,
            pause_budget_ms=self._budget.ms,
            vm_class=self._budget.vm_class,
            old_build_id=vm.build_id,
            new_build_id=vm.build_id,
            old_pid=vm.pid,
            new_pid=vm.pid,
            kvm_build_id_before=kvm.build_id_before,
            kvm_build_id=kvm.build_id_before,
        )

    def run(self) -> VmResult:
        """Upgrade the VM and return what came of it; every failure is in the result, none is raised."""
        result = self._result
        started = time.monotonic()
        try:
            self._upgrade()
            result.outcome = "upgraded"
        except TakenBack as exc:
            self._conclude(
                "rolled_back", exc, "still running on the old build; mend the cause and run the upgrade again"
            )
        except GuestStranded as exc:
            self._conclude(
                "failed", exc, "nothing runs the guest; run the upgrade again to finish or undo the hand-over"
            )
        except GuestLost as exc:
            self._conclude("lost", exc, "start the VM anew")
        except (LiveUpgradeError, OSError) as exc:
            if self._committed:
                self._conclude("failed", exc, f"the new process {result.new_pid} runs the guest")
            else:
                self._conclude("refused", exc, "untouched, still running on the old build")
        result.total_ms = round((time.monotonic() - started) * 1000, 1)
        return result

    def _conclude(self, outcome: str, cause: BaseException, state: str) -> None:
        self._result.outcome = outcome
        self._result.error = f"VM {self._vm.name}: {cause}. State: {state}."
        if self._result.error.count(".. "):
            self._result.error = self._result.error.replace(".. ", ". ")

    def _upgrade(self) -> None:
        vm = self._vm
        with opened_source(vm, self._build_dir, self._mechanism, self._kvm.node) as (source, command):
            self._threads = read_threads(vm.pid, source)
            self._journal.write(
                "begin",
                vm.name,
                old_pid=vm.pid,
                old_start_ticks=vm.start_time_ticks,
                old_build_id=vm.build_id,
                mechanism=self._mechanism,
                pause_budget_ms=self._budget.ms,
                vm_class=self._budget.vm_class,
                qmp_paths=self._qmp_paths,
                workspace=str(self._workspace),
                pidfile=command.pidfile,
                threads=self._threads,
                **self._kvm.to_dict(),
            )
            try:
                self._make_workspace()
                with closing(ConnectedClients(vm.pid, command.clients)) as clients:
                    with fetched_descriptors(command.fds) as descriptors:
                        self._hand_over(source, command, descriptors)
                    self._give_clients(clients)
            finally:
                shutil.rmtree(self._workspace, ignore_errors=True)

    def _hand_over(self, source: QmpClient, command: CommandPlan, descriptors: dict[int, int]) -> None:
        vm = self._vm
        watcher = self._watch_ram_word()
        gaps = []
        taps = TapState(list(descriptors.values()))
        transfer: CprTransfer | CprVfork | None = None
        try:
            if self._mechanism == "vfork":
                transfer = vfork = self._vfork(source)
                committed = vfork.run(command.argv, list(descriptors))
            else:
                transfer = twin = self._transfer(source)
                committed = twin.run(command, descriptors, (vm.uid, vm.gid))
            self._committed = True
            self._result.new_pid = committed.target_pid
            self._result.new_build_id = self._request.build_id
            self._result.kvm_build_id = self._kvm.build_id_after
            self._note_late("committed", target_pid=committed.target_pid)
            self._carry_over_threads(committed.target_pid)
            self._measure_cost(committed)
            transfer.release_source()
            self._note_late("released")
            if command.pidfile:
                self._result.warnings += rewrite_pidfile(command.pidfile, vm.pid, committed.target_pid)
        except TakenBack:
            taps.restore()
            raise
        finally:
            if transfer:
                transfer.close()
            if watcher:
                gaps = self._stop_watcher(watcher)
        self._judge_downtime(committed, gaps)

    def _vfork(self, source: QmpClient) -> CprVfork:
        connect = partial(monitor_of, self._qmp_paths)
        return CprVfork(self._vm.pid, source, connect, self._limits(), self._note)

    def _transfer(self, source: QmpClient) -> CprTransfer:
        return CprTransfer(self._vm.pid, source, self._workspace, self._log_path, self._limits(), self._note)

    def _limits(self) -> Limits:
        return Limits(self._request.prepare_timeout_s, self._budget.ms / 1000)

    def _note(self, step: str, **facts: Any) -> None:
        self._journal.write(step, self._vm.name, **facts)

    def _carry_over_threads(self, pid: int) -> None:
        """While the old process still lives: a vCPU shall not run where it must not for longer than need be."""
        carried = carry_over(self._threads, pid, lambda: monitor_of(self._qmp_paths, pid))
        self._result.threads = carried.done
        self._result.warnings += carried.failed

    def _give_clients(self, clients: ConnectedClients) -> None:
        """The new process runs: what prevents it from having the connections is a warning."""
        self._result.warnings += clients.give(lambda: monitor_of(self._qmp_paths, self._result.new_pid or 0))

    # --- measuring

    def _watch_ram_word(self) -> RamWordWatcher | None:
        """Watch the RAM word of the VM's probe. What prevents it is a warning: QEMU's event times remain."""
        probe = self._request.probes.get(self._vm.name, {}).get("ram_word")
        if not probe:
            return None
        try:
            return RamWordWatcher.of_backend(
                self._vm.pid, str(probe["backend"]), int(probe["offset"]), self._vm.ram_blocks
            )
        except (LiveUpgradeError, OSError, KeyError, ValueError) as exc:
            self._result.warnings.append(f"the guest's RAM word cannot be watched: {exc}")
            return None

    def _stop_watcher(self, watcher: RamWordWatcher) -> list[Any]:
        try:
            return list(watcher.stop())
        except LiveUpgradeError as exc:
            self._result.warnings.append(str(exc))
            return []

    def _judge_downtime(self, committed: Committed, gaps: list[Any]) -> None:
        start_ns, end_ns = committed.stop_us * 1000, committed.resume_us * 1000
        self._result.downtime_ms = round((end_ns - start_ns) / 1e6, 3)
        self._result.downtime_source = "qmp-events"
        gap = gap_over(gaps, start_ns, end_ns)
        if gap:
            self._result.downtime_ms = round(gap.length_ms, 3)
            self._result.downtime_source = "guest-ram-word"

    def _measure_cost(self, committed: Committed) -> None:
        """While both processes live: the private memory of the new one is the peak of what the upgrade cost."""
        status = Path(f"/proc/{committed.target_pid}/status").read_text().splitlines()
        fields = {key: value for key, _colon, value in (line.partition(":") for line in status)}
        private_kib = sum(int(fields[key].split()[0]) for key in ("RssAnon", "VmPTE"))
        self._result.extra_memory_mib = round(private_kib * 1024 / _MIB, 1)
        stat = Path(f"/proc/{committed.target_pid}/stat").read_text().rpartition(")")[2].split()
        target_s = (int(stat[11]) + int(stat[12])) / _CLOCK_TICKS
        own = resource.getrusage(resource.RUSAGE_SELF)
        self._result.cpu_s = round(target_s + own.ru_utime + own.ru_stime, 3)

    # --- small duties

    def _make_workspace(self) -> None:
        """A directory that root and the VM's user may enter, below directories that all may only pass through."""
        for directory in (self._workspace.parent.parent, self._workspace.parent):
            directory.mkdir(mode=0o711, exist_ok=True, parents=True)
        self._workspace.mkdir(mode=0o700)
        os.chown(self._workspace, self._vm.uid, self._vm.gid)
        visible = Path(f"/proc/{self._vm.pid}/root{self._workspace}")
        if not visible.is_dir() or visible.stat().st_ino != self._workspace.stat().st_ino:
            raise LiveUpgradeError(f"{self._workspace} is not visible to the QEMU process; it has its own view of /run")

    def _note_late(self, step: str, **facts: Any) -> None:
        """Journal a step after the point of no return, where a full disk must not stop the work."""
        try:
            self._journal.write(step, self._vm.name, **facts)
        except JournalError as exc:
            self._result.warnings.append(str(exc))


def workspace_of(request: UpgradeRequest, transaction_id: str, vm_name: str) -> Path:
    """Return the directory for the sockets of one hand-over; an odd or long name becomes a digest."""
    if not re.fullmatch(r"[A-Za-z0-9_@][A-Za-z0-9_@.-]{0,31}", vm_name):
        vm_name = hashlib.sha256(vm_name.encode()).hexdigest()[:16]  # a socket's path has 107 bytes at most
    return Path(request.run_dir) / transaction_id / vm_name
