# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: the process that works through one transaction, whatever becomes of the ssh session that asked for it.

Each VM is upgraded by a process of its own, forked here, so that one VM's trouble is nobody else's; the engine holds the
host's lock, bounds how many work at once, and brings to an end what a dead engine or worker left open.
PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal, JournalError, read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.host_lock import HostBusyError, HostLock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Lease
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import VmPlan, plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.recovery import (
    boot_id,
    interrupted_vms,
    recover,
    unfinished_transactions,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.vm_upgrade import VmUpgrade


class Engine:
    """Works through the transaction in one directory. Running it again finishes what it had begun."""

    def __init__(self, transaction: Path) -> None:
        """``transaction`` holds ``request.json``; journal, logs and ``result.json`` are written there."""
        self._transaction = transaction
        self._request = UpgradeRequest(**json.loads((transaction / "request.json").read_text()))
        self._results: dict[str, VmResult] = {}
        self._workers: dict[int, tuple[VmPlan, int]] = {}
        self._stopping = False

    def run(self) -> None:
        """Do the transaction and write its result, also when another engine is found at work on this host."""
        lock = HostLock(Path(self._request.state_dir))
        holder = {"transaction_id": self._transaction.name, "rollout_id": self._request.rollout_id, "pid": os.getpid()}
        try:
            lock.acquire(holder)
        except HostBusyError as exc:
            self._write_result(f"{exc}. No VM was touched")
            return
        signal.signal(signal.SIGTERM, self._stop)
        try:
            self._remember_ends()
            self._finish_predecessors()
            if not read_journal(self._transaction / "journal.jsonl"):
                # Between asking for this host and getting its lock another may have taken it. What has begun is finished.
                Lease(Path(self._request.state_dir)).require_adopted(self._transaction)
            journal = Journal(self._transaction)
            journal.write("start", boot_id=boot_id(), request=self._request.to_dict())
            for result in recover(self._transaction, journal, self._request.build_id):
                self._results[result.name] = result
            self._upgrade_all(journal)
            journal.close()  # which gives back its reserve: on a disk that has filled up the result needs it
            _sweep(self._request, self._transaction)
            self._write_result(None)
        except LiveUpgradeError as exc:
            if interrupted_vms(self._transaction):
                raise  # with a result it would count as finished, and nobody would settle what is open
            self._write_result(str(exc))
        finally:
            lock.close()

    def _stop(self, *_args: object) -> None:
        self._stopping = True

    def _finish_predecessors(self) -> None:
        """Bring transactions of engines that died to their end before beginning anything new."""
        for other in unfinished_transactions(self._transaction.parent):
            if other != self._transaction:
                results = []
                if interrupted_vms(other):
                    request = UpgradeRequest(**json.loads((other / "request.json").read_text()))
                    journal = Journal(other)
                    results = recover(other, journal, request.build_id)
                    journal.close()
                    _sweep(request, other)
                _write_json(other / "result.json", _result(results, "the engine died; finished by the next one"))

    def _remember_ends(self) -> None:
        """After a restart in the middle: keep what is done. First of all, so that it is told whatever fails now."""
        for record in read_journal(self._transaction / "journal.jsonl"):
            if record["step"] == "end":
                self._results[record["vm"]] = VmResult(**record["result"])

    def _upgrade_all(self, journal: Journal) -> None:
        todo = []
        for plan in plan_host(self._request):
            if plan.vm.name in self._results:
                continue
            if plan.decision == "upgrade":
                todo.append(plan)
            else:
                self._end(journal, plan.result())
        while todo or self._workers:
            while todo and len(self._workers) < self._request.parallel and not self._stopping:
                self._start_worker(todo.pop(0), journal)
            if self._stopping and not self._workers:
                break
            self._collect_one(journal)
        for plan in todo:
            result = plan.result()
            result.outcome, result.error = "not_attempted", "the engine was told to stop before this VM's turn"
            self._end(journal, result)

    def _start_worker(self, plan: VmPlan, journal: Journal) -> None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid:
            os.close(write_fd)
            self._workers[pid] = (plan, read_fd)
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            result = VmUpgrade(
                plan.vm, plan.build_dir, str(plan.mechanism), self._request, self._transaction, journal, plan.kvm
            ).run()
            result.reason = plan.reason
            os.write(write_fd, json.dumps(result.to_dict()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)

    def _collect_one(self, journal: Journal) -> None:
        pid, _status = os.wait()
        plan, read_fd = self._workers.pop(pid)
        with os.fdopen(read_fd, "rb") as stream:
            report = stream.read()
        if report:
            self._end(journal, VmResult(**json.loads(report)))
        else:
            self._recover_worker(plan, journal)

    def _recover_worker(self, plan: VmPlan, journal: Journal) -> None:
        """A worker died without an end in the journal: what it left open is settled; else it had touched nothing."""
        for result in recover(self._transaction, journal, self._request.build_id, only=plan.vm.name):
            self._results[result.name] = result
        if plan.vm.name not in self._results:
            result = plan.result()
            result.outcome = "refused"
            result.error = (
                f"VM {plan.vm.name}: its worker died before it touched the VM. State: running on the old build."
            )
            self._end(journal, result)

    def _end(self, journal: Journal, result: VmResult) -> None:
        self._results[result.name] = result
        try:
            journal.write("end", result.name, result=result.to_dict())
        except JournalError as exc:
            result.warnings.append(str(exc))

    def _write_result(self, error: str | None) -> None:
        _write_json(self._transaction / "result.json", _result(list(self._results.values()), error))


def _sweep(request: UpgradeRequest, transaction: Path) -> None:
    """Remove the directory of a transaction's sockets; those of its VMs have gone with their hand-overs."""
    try:
        (Path(request.run_dir) / transaction.name).rmdir()
    except OSError:
        pass  # it was never made, or holds the sockets of a hand-over that is not settled


def _result(results: list[VmResult], error: str | None) -> dict[str, Any]:
    return {"error": error, "vms": [result.to_dict() for result in results]}


def _write_json(path: Path, value: Any) -> None:
    """Write durably and atomically."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def main(argv: list[str]) -> int:
    """Entry point of the engine image: ``engine.pyz run TRANSACTION_DIR``."""
    if len(argv) != 3 or argv[1] != "run":
        sys.stderr.write("usage: engine.pyz run TRANSACTION_DIR\n")
        return 2
    Engine(Path(argv[2])).run()
    return 0
