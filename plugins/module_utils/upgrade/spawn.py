# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the new QEMU as a twin of the running one: same cgroup, namespaces, user, limits, environment, descriptors.

What a process inherits from its parent, the new process takes from ``/proc/PID`` of the old one, since its parent is the
engine. The engine is single-threaded when it forks here, so plain Python is safe between fork and exec.
PRIVATE to the collection.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

_NAMESPACES = ("net", "uts", "ipc", "cgroup", "mnt")
_LIMITS = {
    "Max cpu time": resource.RLIMIT_CPU,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max data size": resource.RLIMIT_DATA,
    "Max stack size": resource.RLIMIT_STACK,
    "Max core file size": resource.RLIMIT_CORE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max address space": resource.RLIMIT_AS,
    "Max pending signals": resource.RLIMIT_SIGPENDING,
    "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    "Max nice priority": resource.RLIMIT_NICE,
    "Max realtime priority": resource.RLIMIT_RTPRIO,
}


class SpawnError(LiveUpgradeError):
    """The new process could not be made like the old one, or could not be executed."""


@dataclass(frozen=True)
class _Twin:
    """What is read of the old process before the fork."""

    environment: dict[bytes, bytes]
    cgroup_procs: Path | None
    namespace_fds: list[int]
    working_directory: str
    limits: list[tuple[int, tuple[int, int]]]
    oom_score_adj: str
    niceness: int
    cpus: set[int]
    umask: int
    user_ids: tuple[int, int, int]
    group_ids: tuple[int, int, int]
    groups: list[int]
    no_new_privs: bool


def spawn_like(
    pid: int, argv: list[str], descriptors: dict[int, int], log_path: Path, environment: dict[str, str] | None = None
) -> int:
    """Execute ``argv`` as a twin of process ``pid`` and return the new pid, a child of the caller.

    ``descriptors`` maps the number that the new process sees to the descriptor of the caller behind it; all others but
    0, 1 and 2 are closed. ``environment`` is added to that of ``pid``. Standard output and error are appended to
    ``log_path``. Raises ``SpawnError``.
    """
    twin = _read_twin(pid)
    twin.environment.update({os.fsencode(name): os.fsencode(value) for name, value in (environment or {}).items()})
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    log_fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    child = os.fork()
    if child == 0:
        _become_twin(twin, argv, descriptors, log_fd, error_write)
    os.close(error_write)
    os.close(log_fd)
    for fd in twin.namespace_fds:
        os.close(fd)
    with os.fdopen(error_read, "rb") as stream:
        failure = stream.read().decode(errors="replace")
    if failure:
        os.waitpid(child, 0)
        raise SpawnError(f"cannot start {argv[0]}: {failure}")
    return child


def start_ticks(pid: int) -> int:
    """Return when ``pid`` started, in clock ticks since boot: with the pid it names one process for ever.

    Raises ``ProcessLookupError`` when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    return int(stat.rpartition(")")[2].split()[19])


def _read_twin(pid: int) -> _Twin:
    try:
        status = _status(pid)
        if int(status["CapEff"], 16) and int(status["Uid"].split()[1]):
            raise SpawnError(
                f"process {pid} is not root but holds capabilities ({status['CapEff']}), which cannot be given to another process"
            )
        if os.readlink(f"/proc/{pid}/root") != "/":
            raise SpawnError(f"process {pid} runs in a chroot; a process outside it cannot be its twin")
        for namespace in ("pid", "user"):
            if not _same_namespace(pid, namespace):
                raise SpawnError(f"process {pid} lives in another {namespace} namespace; start the upgrade inside it")
        uids = [int(field) for field in status["Uid"].split()]
        gids = [int(field) for field in status["Gid"].split()]
        return _Twin(
            environment=_environment(pid),
            cgroup_procs=_foreign_cgroup(pid),
            namespace_fds=[
                os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                for name in _NAMESPACES
                if not _same_namespace(pid, name)
            ],
            working_directory=os.readlink(f"/proc/{pid}/cwd"),
            limits=_limits(pid),
            oom_score_adj=Path(f"/proc/{pid}/oom_score_adj").read_text(),
            niceness=os.getpriority(os.PRIO_PROCESS, pid),
            cpus=os.sched_getaffinity(pid),
            umask=int(status["Umask"], 8),
            user_ids=(uids[0], uids[1], uids[2]),
            group_ids=(gids[0], gids[1], gids[2]),
            groups=[int(group) for group in status["Groups"].split()],
            no_new_privs=status.get("NoNewPrivs") == "1",
        )
    except (OSError, KeyError, ValueError) as exc:
        raise SpawnError(f"cannot read how process {pid} runs: {exc}") from exc


def _reset_signals(_twin: _Twin) -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # the C library keeps a few real-time signals for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _join_the_cgroup(twin: _Twin) -> None:
    if twin.cgroup_procs:
        twin.cgroup_procs.write_text("0")


def _set_scheduling(twin: _Twin) -> None:
    Path("/proc/self/oom_score_adj").write_text(twin.oom_score_adj)
    os.setpriority(os.PRIO_PROCESS, 0, twin.niceness)
    os.sched_setaffinity(0, twin.cpus)


def _enter_namespaces(twin: _Twin) -> None:
    for namespace_fd in twin.namespace_fds:
        syscalls.setns(namespace_fd)
    os.chdir(twin.working_directory)
    os.umask(twin.umask)


def _set_limits(twin: _Twin) -> None:
    for limit, value in twin.limits:
        resource.setrlimit(limit, value)


def _drop_privileges(twin: _Twin) -> None:
    os.setgroups(twin.groups)
    os.setresgid(*twin.group_ids)
    os.setresuid(*twin.user_ids)
    if twin.no_new_privs:
        syscalls.set_no_new_privs()


# In this order: privileges go last, and the cgroup is found in the engine's view of the file system.
_STEPS: tuple[Callable[[_Twin], None], ...] = (
    _reset_signals,
    _join_the_cgroup,
    _set_scheduling,
    _enter_namespaces,
    _set_limits,
    _drop_privileges,
)


def _become_twin(twin: _Twin, argv: list[str], descriptors: dict[int, int], log_fd: int, error_fd: int) -> None:
    """Turn the forked child into the new QEMU. Never returns: it executes, or reports through ``error_fd`` and exits."""
    doing = "start"
    try:
        os.setsid()
        for step in _STEPS:
            doing = step.__name__.strip("_").replace("_", " ")
            step(twin)
        doing = "arrange descriptors"
        error_fd = _arrange_descriptors(descriptors, log_fd, error_fd)
        doing = "execute it"
        os.execve(argv[0], argv, twin.environment)
    except BaseException as exc:
        os.write(error_fd, f"cannot {doing}: {exc}".encode())
    finally:
        os._exit(127)


def _arrange_descriptors(wanted: dict[int, int], log_fd: int, error_fd: int) -> int:
    """Make exactly ``wanted`` and 0-2 inheritable; return where ``error_fd`` is now (close-on-exec)."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    targets = {0: null_fd, 1: log_fd, 2: log_fd, **wanted}
    floor = max(targets) + 1
    # Everything goes above the numbers wanted first, so that no dup2 overwrites a descriptor still needed.
    lifted = {number: _dup_above(fd, floor) for number, fd in targets.items()}
    lifted_error = _dup_above(error_fd, floor)
    for number, fd in lifted.items():
        os.dup2(fd, number, inheritable=True)
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd not in targets and fd != lifted_error:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own descriptor
    return lifted_error


def _dup_above(fd: int, floor: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def _limits(pid: int) -> list[tuple[int, tuple[int, int]]]:
    """Read the limits from /proc: ``prlimit`` wants CAP_SYS_RESOURCE even for a look at another user's process."""
    limits = []
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        label, values = line[:26].strip(), line[26:].split()
        if label in _LIMITS:
            soft, hard = (resource.RLIM_INFINITY if value == "unlimited" else int(value) for value in values[:2])
            limits.append((_LIMITS[label], (soft, hard)))
    return limits


def _environment(pid: int) -> dict[bytes, bytes]:
    """Without what an earlier hand-over told ``pid`` at its start: the new process would take it for its own."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    given = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    return {name: value for name, value in given.items() if not name.startswith(b"QEMU_CPR_")}


def _same_namespace(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")


def _foreign_cgroup(pid: int) -> Path | None:
    """Return ``cgroup.procs`` of the (v2) cgroup of ``pid``, or None when the caller is in it already."""
    theirs = _cgroup(str(pid))
    if theirs is None or theirs == _cgroup("self"):
        return None
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        procs = Path(f"{mount}{theirs}/cgroup.procs")
        if procs.exists():
            return procs
    raise SpawnError(f"the cgroup {theirs} of process {pid} is not below /sys/fs/cgroup")


def _cgroup(pid: str) -> str | None:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None
