# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells of a process, for the tests of this folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any


def descriptors(pid: int) -> dict[int, str]:
    """What the descriptors of ``pid`` are links to; one that it closes meanwhile is left out."""
    links = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            links[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return links


def listening_at(pid: int, address: Any) -> set[str]:
    """The sockets with which ``pid`` listens at ``address``, as links of ``/proc/PID/fd``."""
    if isinstance(address, tuple):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        # 0A: it listens.
        inodes = {row[9] for row in rows if row[1].endswith(f":{address[1]:04X}") and row[3] == "0A"}
    else:
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        # Flags 00010000: it listens.
        inodes = {row[6] for row in rows if row[-1] == address.replace("\0", "@") and row[3] == "00010000"}
    return set(descriptors(pid).values()) & {f"socket:[{inode}]" for inode in inodes}


def listener(pid: int, address: Any) -> int:
    """The descriptor with which ``pid`` listens at ``address``."""
    (link,) = listening_at(pid, str(address) if isinstance(address, Path) else address)
    return next(number for number, target in descriptors(pid).items() if target == link)


def is_blocking(pid: int, fd: int) -> bool:
    """Whether a call that finds nothing to do at ``fd`` waits."""
    flags = re.search(r"^flags:\s*(\d+)$", Path(f"/proc/{pid}/fdinfo/{fd}").read_text(), re.MULTILINE)
    assert flags is not None
    return not int(flags[1], 8) & os.O_NONBLOCK


def lock_holder(path: Path) -> int:
    """The process that holds the POSIX lock of ``path``, of those that the kernel lists; 0: none."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "POSIX" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return 0


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def ids(pid: int) -> dict[str, str]:
    return {key: " ".join(_status(pid)[key].split()) + " " for key in ("Uid", "Gid", "Groups")}


def options_of_process(pid: int) -> dict[str, str]:
    return {key: _status(pid)[key] for key in ("Name", "Seccomp", "NoNewPrivs")}


def threads(pid: int) -> list[str]:
    return [Path(f"/proc/{pid}/task/{task}/comm").read_text().strip() for task in os.listdir(f"/proc/{pid}/task")]


def circumstances(pid: int) -> dict[str, str]:
    """Where a process lives, as the kernel tells it."""
    proc = Path(f"/proc/{pid}")
    spaces = {f"ns/{name}": os.readlink(proc / "ns" / name) for name in os.listdir(proc / "ns")}
    links = {name: os.readlink(proc / name) for name in ("cwd", "root")}
    files = {name: (proc / name).read_text() for name in ("cgroup", "limits", "oom_score_adj", "loginuid", "sessionid")}
    # What the old process told the new one shows there for as long as that lives, and goes no further.
    environment = {"environ": re.sub(r"QEMU_CPR_VFORK\w*=[^\0]*\0", "", (proc / "environ").read_text())}
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    status = {key: _status(pid)[key] for key in ("Umask", "Uid", "Gid", "Groups", "CapEff", "Cpus_allowed")}
    return {**spaces, **links, **files, **environment, **status, "nice": stat[16], "group": stat[2], "session": stat[3]}
