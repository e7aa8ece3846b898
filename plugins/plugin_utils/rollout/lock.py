# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks on the controller: no host is in two rollouts at once.

A rollout spans many short-lived task processes, so the owner of a lock is the ansible-playbook process, named by pid and
start time; a lock whose owner is gone is stale and is removed. Another controller is kept out by the lock on the host
itself, which the engine holds; so is a container that shares the directory of locks, whose processes cannot be seen from here.
PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import utc_now, write_atomically

_PID_NAMESPACE = "/proc/self/ns/pid"
_NOT_IN_A_CONTAINER = 0xEFFFFFFC
"""Inode of the first PID namespace, the same on each Linux (PROC_PID_INIT_INO)."""


def lock_directory() -> Path:
    """Return the directory of all rollout locks of this user."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "vmm-live-upgrade" / "rollouts"


def controller_id() -> str:
    """Return the name by which hosts tell this controller's rollouts from those of others; made up once, then kept.

    Here the locks keep rollouts apart, so that one may take hosts over from another that died here. Each container is another
    controller.
    """
    namespace = _pid_namespace()
    container = "" if namespace == _NOT_IN_A_CONTAINER else f"-{namespace}"
    with _guard() as directory:
        path = directory / "controller-id"
        if not path.is_file():
            write_atomically(path, f"{os.uname().nodename}-{secrets.token_hex(4)}")
        return path.read_text(encoding="utf-8") + container


def acquire(rollout_id: str, addresses: Mapping[str, str], owner_pid: int) -> None:
    """Lock the hosts (``addresses``: inventory name → address) for the process ``owner_pid``.

    Raises ``AnsibleError`` naming the other rollout when one of them is locked by a living process.
    """
    with _guard() as directory:
        for other in _living(directory):
            shared = sorted(name for name, address in addresses.items() if address in other["addresses"])
            if shared:
                raise AnsibleError(
                    f"rollout {other['rollout_id']} (process {other['pid']}, since {other['at']}) is working on "
                    f"{', '.join(shared)}; nothing was touched. Wait for it, or stop it first."
                )
        lock = {
            "rollout_id": rollout_id,
            "pid": owner_pid,
            "start_ticks": start_ticks(owner_pid),
            "pid_namespace": _pid_namespace(),
            "at": utc_now(),
            "addresses": sorted(set(addresses.values())),
        }
        write_atomically(directory / f"{rollout_id}.json", json.dumps(lock))


def release(rollout_id: str) -> None:
    """Give the hosts of ``rollout_id`` free. Idempotent."""
    with _guard() as directory:
        (directory / f"{rollout_id}.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _guard() -> Iterator[Path]:
    directory = lock_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / ".guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(fd)


def _living(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the locks whose owner lives; remove the others, but for those of other containers, of which nothing is known."""
    for path in sorted(directory.glob("*.json")):
        lock = json.loads(path.read_text(encoding="utf-8"))
        if lock["pid_namespace"] != _pid_namespace():
            continue
        if lives(lock["pid"], lock["start_ticks"]):
            yield lock
        else:
            path.unlink()


def _pid_namespace() -> int:
    return os.stat(_PID_NAMESPACE).st_ino


def lives(pid: int, started: int | None) -> bool:
    """Tell whether a process is the one that had ``started`` (ticks) when it was noted; none is that was gone by then."""
    return started is not None and start_ticks(pid) == started


def start_ticks(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot, None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
