# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a transaction detached from the session, attach to a running one, read what came of one.

PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import JournalError, read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.host_lock import HostLock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.image import write_image
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.recovery import unfinished_transactions

_KEPT = 50
_START_S = 30.0
_STARTS = 2


@dataclass(frozen=True)
class Progress:
    """The state of a transaction. ``result`` is None while it runs; ``steps``: VM name → its journal steps."""

    transaction_id: str
    steps: dict[str, list[str]]
    result: dict[str, Any] | None


class Transactions:
    """The transactions of one host."""

    def __init__(self, request: UpgradeRequest) -> None:
        """``request`` is what the caller asks for; its ``state_dir`` says where transactions live."""
        self._request = request
        self._state_dir = Path(request.state_dir)
        self._directory = self._state_dir / "transactions"

    def find(self, known: str | None = None) -> Path | None:
        """Return the transaction that this request already has: ``known``, one not finished, or one of the same rollout.

        Raises ``LiveUpgradeError`` when something else is at work here, or there is no ``known`` of this request.
        """
        if known is not None:
            transaction = self._directory / Path(known).name
            if not self._asks_for_same(transaction):
                raise LiveUpgradeError(
                    f"host {os.uname().nodename}: there is no transaction {known} of this request. Nothing was touched"
                )
            return transaction
        lock = HostLock(self._state_dir)
        try:
            busy = not lock.is_free()
            holder, in_use = lock.holder(), lock.in_use()
        finally:
            lock.close()
        if busy:
            transaction = self._directory / str(holder.get("transaction_id"))
            if self._asks_for_same(transaction):
                return transaction
            raise LiveUpgradeError(f"{in_use}. Nothing was touched; wait for it to end")
        for transaction in sorted(self._directory.glob("*-*"), reverse=True):
            finished = (transaction / "result.json").exists()
            # One that was refused the host did nothing, and says nothing of whether it would be refused now.
            told = self._request.rollout_id and read_journal(transaction / "journal.jsonl")
            if self._asks_for_same(transaction) and (told or not finished):
                return transaction
        return None

    def unfinished(self) -> bool:
        """Tell whether a dead engine left a transaction open: a new one finishes it before its own work."""
        return bool(unfinished_transactions(self._directory))

    def begin(self, claim: Claim | None = None) -> Path:
        """Create a transaction for the request, without starting its engine. Raises ``LiveUpgradeError``.

        For a rollout's run, ``claim``, the host's lease is taken: nothing is created where it is refused.
        """
        name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + "-" + secrets.token_hex(3)
        transaction = self._directory / name
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forget_old()
            transaction.mkdir(mode=0o700)
            (transaction / "logs").mkdir(mode=0o700)
            write_image(transaction / "engine.pyz")
            with open(transaction / "request.json", "x", encoding="utf-8") as stream:
                json.dump(self._request.to_dict(), stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            if claim is not None:
                Lease(self._state_dir).take(claim, transaction)
        except BaseException as exc:
            shutil.rmtree(transaction, ignore_errors=True)
            if not isinstance(exc, OSError):
                raise
            raise JournalError(
                f"host {os.uname().nodename}: cannot keep a journal in {self._directory}: {exc.strerror}. No VM was touched"
            ) from exc
        return transaction

    def run(self, transaction: Path, wait_s: float) -> Progress:
        """See to it that the engine of ``transaction`` runs, wait up to ``wait_s`` for its end, and tell the state.

        An engine that died is started once more: it finishes or undoes what it left. Raises ``LiveUpgradeError`` when
        that one dies, too.
        """
        deadline = time.monotonic() + wait_s
        started = 0
        while not (transaction / "result.json").exists():
            pid = self._engine_pid(transaction)
            if pid is None and started == _STARTS:
                raise LiveUpgradeError(
                    f"host {os.uname().nodename}: the engine of transaction {transaction.name} ends without a result: "
                    f"{_tail(transaction / 'engine.log')}. Run again to finish or undo it"
                )
            if pid is None:
                pid = self._start_engine(transaction)
                started += 1
            if not _await_end(pid, max(0.0, deadline - time.monotonic())):
                break
        return Progress(transaction.name, _steps(transaction), _read_result(transaction))

    def _start_engine(self, transaction: Path) -> int:
        """Run the engine in a unit of its own, so that the end of this session is not its end. Returns its pid.

        A transaction has one unit. An engine that died is started again by systemd; to find it gone is not to need another.
        """
        command = [sys.executable, str(transaction / "engine.pyz"), "run", str(transaction)]
        if not os.path.isdir("/run/systemd/system"):
            with open(transaction / "engine.log", "ab") as log:
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
                ).pid
        unit = f"vmm-live-upgrade-{transaction.name}.service"
        properties = (
            "Type=exec",
            "KillMode=process",
            "Restart=on-failure",
            "RestartSec=100ms",
            "OOMScoreAdjust=-900",
            f"StandardError=append:{transaction / 'engine.log'}",
        )
        run = _systemd(
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={unit}",
            *(f"--property={item}" for item in properties),
            *command,
        )
        if run.returncode:
            # Refused when there is the unit: about to start its engine again, or dead with workers that still live. To
            # start it waits for the one and does the other.
            start = _systemd("systemctl", "start", unit)
            if start.returncode and not (transaction / "result.json").exists():
                words = "; ".join(done.stderr.strip().rstrip(".") for done in (run, start))
                raise LiveUpgradeError(f"cannot start the engine: {words}. Run again")
        return int(_systemd("systemctl", "show", "--property=MainPID", "--value", unit).stdout or 0)

    def _engine_pid(self, transaction: Path) -> int | None:
        """Return the engine at work on ``transaction``. Workers that outlive it hold its lock: the next one waits for them."""
        lock = HostLock(self._state_dir)
        try:
            if lock.is_free() or lock.holder().get("transaction_id") != transaction.name:
                return None
            pid = int(lock.holder()["pid"])
            return None if _await_end(pid, 0) else pid
        finally:
            lock.close()

    def _asks_for_same(self, transaction: Path) -> bool:
        try:
            asked = UpgradeRequest(**json.loads((transaction / "request.json").read_text()))
        except (OSError, ValueError, TypeError):
            return False
        return asked.fingerprint() == self._request.fingerprint()

    def _forget_old(self) -> None:
        """Keep the last transactions only; one without a result is never forgotten."""
        finished = sorted(path for path in self._directory.iterdir() if (path / "result.json").exists())
        for path in finished[:-_KEPT]:
            shutil.rmtree(path, ignore_errors=True)


def _read_result(transaction: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((transaction / "result.json").read_text())
    except FileNotFoundError:
        return None
    return result


def _steps(transaction: Path) -> dict[str, list[str]]:
    steps: dict[str, list[str]] = {}
    for record in read_journal(transaction / "journal.jsonl"):
        if "vm" in record and record["step"] != "end":
            steps.setdefault(record["vm"], []).append(record["step"])
    return steps


def _systemd(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of systemd's. Raises ``LiveUpgradeError`` when it does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S)
    except subprocess.TimeoutExpired as exc:
        raise LiveUpgradeError(
            f"cannot start the engine: {command[0]} does not end within {_START_S:g} s. Run again"
        ) from exc


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return " | ".join(lines[-3:])[-500:] or "it left no words"


def _await_end(pid: int, timeout_s: float) -> bool:
    """Wait for a process to end; True when it has."""
    if not pid:
        return True  # systemd knows no main process any more
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)
