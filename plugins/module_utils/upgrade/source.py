# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that runs a VM now: its monitor, the command of the one that is to follow it, and what that one gets of it.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpDeadError, QmpError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import start_ticks
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.recreate import CommandPlan, InheritedFd, plan_command


@contextmanager
def opened_source(
    vm: Vm, build_dir: Path, mechanism: str, kvm_node: str | None = None
) -> Iterator[tuple[QmpClient, CommandPlan]]:
    """Hold the monitor of ``vm``, and have the command by which the build in ``build_dir`` would follow it.

    ``kvm_node``: the node of KVM that it is to open, None for the one that the VM has. Raises ``LiveUpgradeError`` when the
    process is another one by now, no monitor serves us, or there is no such command.
    """
    if start_ticks(vm.pid) != vm.start_time_ticks:
        raise LiveUpgradeError(f"process {vm.pid} is no longer the one that was looked at")
    with open_monitor(vm) as monitor:
        command = plan_command(vm, monitor, build_dir, mechanism, kvm_node)
        if command.problems:
            raise LiveUpgradeError("; ".join(problem.message for problem in command.problems))
        yield monitor, command


@contextmanager
def fetched_descriptors(wanted: list[InheritedFd]) -> Iterator[dict[int, int]]:
    """Hold duplicates of descriptors of other processes: number for the new process → descriptor of ours."""
    fetched: dict[int, int] = {}
    try:
        for item in wanted:
            fetched[item.number] = _fetch(item)
        yield fetched
    finally:
        for fd in fetched.values():
            os.close(fd)


def open_monitor(vm: Vm) -> QmpClient:
    """Connect to the first monitor of ``vm`` that serves us. Raises ``LiveUpgradeError`` saying why none does."""
    reasons = []
    for endpoint in vm.qmp_endpoints:
        try:
            return QmpClient.connect(f"/proc/{vm.pid}/root{endpoint.path}")
        except LiveUpgradeError as exc:
            reasons.append(str(exc))
    raise LiveUpgradeError("; ".join(reasons) or "the process has no QMP monitor on a UNIX socket")


def monitor_of(paths: list[str], pid: int) -> QmpClient:
    """Connect to a monitor that is served by process ``pid``. Raises ``QmpError``.

    Old and new share the listening sockets, and a monitor serves one client at a time: while a connection to the wrong
    one is held, the next goes to the other.
    """
    held: list[QmpClient] = []
    reasons = []
    try:
        for path in paths:
            for _attempt in range(2):
                try:
                    client = QmpClient.connect(f"/proc/{pid}/root{path}")
                except QmpError as exc:
                    reasons.append(str(exc))
                    break
                if _serves(client, pid):
                    return client
                held.append(client)
    finally:
        for client in held:
            client.close()
    raise QmpDeadError(f"no monitor of process {pid} answers: {'; '.join(reasons) or 'others do'}")


def _serves(client: QmpClient, pid: int) -> bool:
    """Tell whether the process behind ``client`` is ``pid``: the threads of its vCPUs are that process's."""
    thread = client.execute("query-cpus-fast")[0]["thread-id"]
    return os.path.exists(f"/proc/{pid}/task/{thread}")


def _fetch(item: InheritedFd) -> int:
    pidfd = os.pidfd_open(item.source_pid)
    try:
        fd = syscalls.pidfd_getfd(pidfd, item.source_fd)
        if _listens(fd):
            # A client wakes up both processes, and QEMU would wait for the next one where the other was faster.
            os.set_blocking(fd, False)
        return fd
    except OSError as exc:
        raise LiveUpgradeError(f"cannot take over the {item.purpose}: {exc.strerror}") from exc
    finally:
        os.close(pidfd)


def _listens(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
