# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU processes of a host, and what ``/proc`` tells of one without asking it. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.elf import ExeIdentity, identify

_NAMES = re.compile(r"qemu-system-[A-Za-z0-9_.+-]+|qemu-kvm|kvm")
_DELETED = " (deleted)"
# A renamed QEMU betrays itself by options that no system emulator goes without.
_TELLING_OPTIONS = {"-machine", "-M", "-accel", "-enable-kvm", "-qmp", "-mon", "-nodefaults"}
# With these QEMU prints something and ends, or is a probe of a management tool: no VM.
_NO_VM_OPTIONS = {"-version", "-h", "-help", "-dump-vmstate"}
_NO_VM_VALUES = {"help", "?", "none"}
_VALUES_THAT_TELL = {"-machine", "-M", "-cpu", "-device", "-accel"}
_UNIT_SUFFIXES = (".service", ".scope")
_LISTENS = "00010000"  # the flag SO_ACCEPTCON in /proc/net/unix
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class Process:
    """One QEMU process. ``state`` is the letter of ``/proc/PID/stat``; times in clock ticks since boot."""

    pid: int
    parent_pid: int
    state: str
    start_time_ticks: int
    exe: str
    exe_deleted: bool
    identity: ExeIdentity
    argv: list[str]
    uid: int
    gid: int
    cgroup: str | None
    unit: str | None


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    shared: bool
    inode: int
    path: str


@dataclass
class IdentityCache:
    """Identities of executables already read in this look at the host: many VMs run one binary."""

    _known: dict[tuple[int, int, int, int], ExeIdentity] = field(default_factory=dict)

    def of(self, pid: int) -> ExeIdentity:
        """Return the identity of what ``pid`` runs. Raises ``OSError``."""
        path = f"/proc/{pid}/exe"
        status = os.stat(path)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = identify(path)
        return self._known[key]


def qemu_processes() -> list[Process]:
    """Return every process of this host that runs a VM, by pid. Processes that end meanwhile are passed over."""
    cache = IdentityCache()
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = _read_process(int(entry), cache)
            if process:
                found[process.pid] = process
    return [found[pid] for pid in sorted(found) if not _is_helper(found[pid], found)]


def read_process(pid: int) -> Process | None:
    """Return the VM process ``pid``, or None when there is none of that pid or it runs no VM."""
    return _read_process(pid, IdentityCache())


def read_status(pid: int, root: Path = Path("/")) -> dict[str, str]:
    """Return the fields of ``/proc/PID/status``; ``root`` is another one in tests only. Raises ``OSError``."""
    lines = (root / f"proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def descriptors(pid: int, root: Path = Path("/")) -> dict[int, str]:
    """Return descriptor number → what ``/proc/PID/fd`` says it is; ``root`` is another one in tests only.

    Raises ``OSError`` when ``pid`` is gone.
    """
    folder = root / f"proc/{pid}/fd"
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(folder / name)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def descriptor_info(pid: int, number: int) -> dict[str, str]:
    """Return the fields of ``/proc/PID/fdinfo/N``; ``iff`` is the interface of a tap. Raises ``OSError``."""
    lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    return {key.strip(): value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def tap_interfaces(pid: int, links: dict[int, str]) -> dict[int, str]:
    """Return descriptor number → interface name, of every tap that ``pid`` holds."""
    taps = {}
    for number, link in links.items():
        if link.endswith("/tun"):
            try:
                name = descriptor_info(pid, number).get("iff")
            except OSError:
                continue  # closed meanwhile
            if name:
                taps[number] = name
    return taps


def mappings(pid: int) -> list[Mapping]:
    """Return the address space of ``pid``. Raises ``OSError``."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        addresses, modes, _offset, _device, inode, *path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        found.append(Mapping(start, end, modes[3] == "s", int(inode), path[0] if path else ""))
    return found


def listener_path(pid: int, number: int) -> str | None:
    """Return the path on which the UNIX socket behind descriptor ``number`` of ``pid`` listens; None when it does not."""
    try:
        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{number}"))
        table = Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return None
    for line in table:
        fields = line.split(maxsplit=7)
        if match and len(fields) == 8 and fields[6] == match.group(1) and fields[3] == _LISTENS:
            return fields[7]
    return None


def kvm_descriptor(pid: int, links: dict[int, str]) -> tuple[int, str] | None:
    """Return the descriptor by which ``pid`` uses KVM, and the path of its node; None when there is none such as it is named."""
    for number, link in sorted(links.items()):
        path = link[: -len(_DELETED)] if link.endswith(_DELETED) else link
        if "kvm" in os.path.basename(path) and os.path.isabs(path):
            try:
                if stat.S_ISCHR(os.stat(f"/proc/{pid}/fd/{number}").st_mode):
                    return number, path
            except OSError:
                continue  # closed meanwhile
    return None


def _read_process(pid: int, cache: IdentityCache) -> Process | None:
    try:
        exe = os.readlink(f"/proc/{pid}/exe")
        argv = _read_argv(pid)
        if not argv or not _may_be_qemu(exe, argv) or _runs_no_vm(argv):
            return None
        identity = cache.of(pid)
        if not identity.is_qemu:
            return None
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        status = read_status(pid)
        cgroup = _cgroup(pid)
    except OSError:
        return None  # a kernel thread, a zombie, or it has ended
    return Process(
        pid=pid,
        parent_pid=int(fields[1]),
        state=fields[0],
        start_time_ticks=int(fields[19]),
        exe=exe[: -len(_DELETED)] if exe.endswith(_DELETED) else exe,
        exe_deleted=exe.endswith(_DELETED),
        identity=identity,
        argv=argv,
        uid=int(status["Uid"].split()[1]),
        gid=int(status["Gid"].split()[1]),
        cgroup=cgroup,
        unit=_unit(cgroup),
    )


def age_s(start_time_ticks: int) -> int:
    """Return for how many seconds a process runs that was started then; suspended time of the host counts, too."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return max(int(uptime_s - start_time_ticks / os.sysconf("SC_CLK_TCK")), 0)


def _read_argv(pid: int) -> list[str]:
    data = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [os.fsdecode(argument) for argument in data.rstrip(b"\0").split(b"\0")] if data else []


def _may_be_qemu(exe: str, argv: list[str]) -> bool:
    path = exe[: -len(_DELETED)] if exe.endswith(_DELETED) else exe
    names = (os.path.basename(path), os.path.basename(argv[0]))
    return any(_NAMES.fullmatch(name) for name in names) or any(_dash(word) in _TELLING_OPTIONS for word in argv[1:])


def _runs_no_vm(argv: list[str]) -> bool:
    words = [_dash(word) for word in argv[1:]]
    if _NO_VM_OPTIONS.intersection(words):
        return True
    pairs = zip(words, argv[2:])
    return any(option in _VALUES_THAT_TELL and value.split(",")[0] in _NO_VM_VALUES for option, value in pairs)


def _dash(word: str) -> str:
    """QEMU takes ``--option`` for ``-option``."""
    return word[1:] if word.startswith("--") else word


def _is_helper(process: Process, others: dict[int, Process]) -> bool:
    """A fork of a QEMU that has not executed anything else: the reaper of ``async-teardown``, a script about to start."""
    parent = others.get(process.parent_pid)
    return parent is not None and parent.argv == process.argv and parent.exe == process.exe


def _cgroup(pid: int) -> str | None:
    """Return the path of the unified (v2) cgroup, else of systemd's own hierarchy."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _hierarchy, controllers, path = line.split(":", 2)
        paths[controllers] = path
    unified = paths.get("")
    return unified if unified not in (None, "/") else paths.get("name=systemd", unified)


def _unit(cgroup: str | None) -> str | None:
    for component in reversed((cgroup or "").split("/")):
        if component.endswith(_UNIT_SUFFIXES):
            return component
    return None


def unit_instance(unit: str | None) -> str | None:
    """Return what stands between ``@`` and the suffix of a systemd unit; None when it is no instance.

    Escapes are undone, but a dash stays a dash, which systemd takes for a slash: names of VMs have dashes.
    """
    name, at, instance = (unit or "").rpartition(".")[0].partition("@")
    if not (name and at and instance):
        return None
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), instance)
