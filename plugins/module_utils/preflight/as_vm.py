# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try to open files as a VM's new process would: below its root, as its user, in its control group. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import read_status

# Where the control group that decides on devices is joined: version 2, or the hierarchy of version 1 for devices.
_HIERARCHIES = {"": ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "devices": ("/sys/fs/cgroup/devices",)}


def errors_of_opening(
    vm: Vm, wanted: Sequence[tuple[str, int]], in_its_groups: bool = False
) -> list[tuple[str, OSError]]:
    """Return path → error for each of ``wanted`` (path, flags of open) that cannot be opened by a process like that of ``vm``.

    Forks, and the child alone changes user and, with ``in_its_groups``, control group: to be called while this process has
    one thread. Raises ``LiveUpgradeError`` when it cannot be tried.
    """
    groups = [int(group) for group in read_status(vm.pid)["Groups"].split()]
    joined = _group_files(vm.pid) if in_its_groups else []
    root_fd = os.open(f"/proc/{vm.pid}/root", os.O_PATH | os.O_CLOEXEC)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _try_as_vm(vm, groups, joined, root_fd, wanted, write_fd)
    os.close(root_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, errors="replace") as stream:
        lines = [json.loads(line) for line in stream]
    if os.waitpid(child, 0)[1]:
        raise LiveUpgradeError(
            f"what user {vm.uid} may open could not be tried: {lines[-1] if lines else 'no reason given'}"
        )
    return [(path, OSError(number, os.strerror(number))) for path, number in lines]


def _try_as_vm(
    vm: Vm, groups: list[int], joined: list[Path], root_fd: int, wanted: Sequence[tuple[str, int]], report_fd: int
) -> None:
    """In the child: open and close each file, write a line per failure, exit with 0 when all was tried."""
    status = 1
    try:
        for procs in joined:
            procs.write_text("0")
        if os.geteuid() == 0:
            os.setgroups(groups)
            os.setresgid(vm.gid, vm.gid, vm.gid)
            os.setresuid(vm.uid, vm.uid, vm.uid)
        for path, flags in wanted:
            try:
                os.close(os.open(path.lstrip("/"), flags | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=root_fd))
            except OSError as exc:
                os.write(report_fd, (json.dumps([path, exc.errno]) + "\n").encode())
        status = 0
    except OSError as exc:
        os.write(report_fd, (json.dumps(f"{exc.filename or 'user'}: {exc.strerror}") + "\n").encode())
    finally:
        os._exit(status)


def _group_files(pid: int) -> list[Path]:
    """Return the files by which one joins those groups of ``pid`` that we are not in."""
    ours = _groups("self")
    found = []
    for controller, group in _groups(str(pid)).items():
        for mount in _HIERARCHIES.get(controller, ()) if group != ours.get(controller) else ():
            procs = Path(f"{mount}{group}/cgroup.procs")
            if procs.exists():
                found.append(procs)
                break
    return found


def _groups(who: str) -> dict[str, str]:
    lines = Path(f"/proc/{who}/cgroup").read_text().splitlines()
    return {controllers: path for _number, controllers, path in (line.split(":", 2) for line in lines)}
