# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the running VMs of this host and learn about each, without configuration.

What ``/proc`` tells is read first, then every VM is asked through QMP, each by a thread of its own with a bound of time: a
wedged VM costs its own facts and nobody else's. PRIVATE to the collection.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import devices, mechanisms, monitor
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.accelerator import DEFAULT_NODE, kvm_node_named
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.backends import PRIVATE_MONITOR
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse, parse_keyval
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.locked_memory import locked_memory
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import Answers
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import (
    Process,
    descriptors,
    kvm_descriptor,
    listener_path,
    mappings,
    qemu_processes,
    read_process,
    tap_interfaces,
    unit_instance,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.ram import ram_blocks
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_use import vfio_use

_MAX_THREADS = 16
_MACHINE_SUFFIX = "-machine"


def discover() -> list[Vm]:
    """Return every running VM of this host, by name. Raises nothing for a VM that is wedged, foreign or about to end."""
    processes = qemu_processes()
    if not processes:
        return []
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, len(processes))) as pool:
        vms = [vm for vm in pool.map(_look_at, processes) if vm is not None]
    _point_out_namesakes(vms)
    return sorted(vms, key=lambda vm: (vm.name, vm.pid))


def discover_one(pid: int) -> Vm | None:
    """Return the VM that process ``pid`` runs, or None when it runs none."""
    process = read_process(pid)
    return _look_at(process) if process else None


def name_of(pid: int) -> str | None:
    """Return the name of the VM that process ``pid`` runs, without asking it; None when it runs none."""
    process = read_process(pid)
    return _name(process, _options(process.argv)[0]) if process else None


def select(vms: Iterable[Vm], names: list[str]) -> list[Vm]:
    """Return the VMs of these names, all when ``names`` is empty. Raises ``LiveUpgradeError`` for an unknown name."""
    found = list(vms)
    unknown = sorted(set(names) - {vm.name for vm in found})
    if unknown:
        known = ", ".join(vm.name for vm in found) or "none"
        raise LiveUpgradeError(f"no such VM runs on this host: {', '.join(unknown)}; running: {known}")
    return [vm for vm in found if not names or vm.name in names]


def _look_at(process: Process) -> Vm | None:
    """Learn about one VM; None when it ends meanwhile."""
    options, problems = _options(process.argv)
    vm = Vm(
        name=_name(process, options),
        pid=process.pid,
        start_time_ticks=process.start_time_ticks,
        exe=process.exe,
        exe_deleted=process.exe_deleted,
        build_id=process.identity.build_id,
        gnu_build_id=process.identity.gnu_build_id,
        version=_version_of_build(process.identity.build_id),
        argv=process.argv,
        unit=process.unit,
        cgroup=process.cgroup,
        uid=process.uid,
        gid=process.gid,
        stopped=process.state in "Tt",
        security_label=_security_label(process.pid),
        problems=problems,
    )
    if vm.stopped:
        vm.problems.append("the process is stopped by a signal; it runs neither the guest nor its monitor")
    try:
        _fill(vm, options)
    except OSError as exc:
        now = read_process(process.pid)
        if now is None or now.start_time_ticks != process.start_time_ticks:
            return None
        vm.problems.append(f"cannot read /proc/{process.pid}: {exc.strerror}; run as root")
    vm.mechanisms = mechanisms.judge(vm, options)
    return vm


def _fill(vm: Vm, options: list[Option]) -> None:
    links = descriptors(vm.pid)
    taps = tap_interfaces(vm.pid, links)
    paths, vm.other_monitors = monitors(vm.pid, options)
    answers = monitor.ask(vm.pid, paths)
    vm.qmp_endpoints = answers.endpoints
    vm.problems += answers.problems
    vm.accelerator = _accelerator(options, links)
    vm.kvm_device = _kvm_device(vm, options, links)
    vm.machine_type = _machine_type(options, answers)
    _fill_state(vm, answers)
    vm.ram_blocks = ram_blocks(options, answers, mappings(vm.pid))
    vm.disks = devices.disks(options, answers)
    vm.nics = devices.nics(options, answers, taps)
    vm.passthrough = devices.passthrough(options, answers)
    vm.vfio = vfio_use(vm.pid, links)
    vm.locked_memory = locked_memory(vm.pid)
    vm.hotplugged = devices.hotplugged(options, answers)


def _fill_state(vm: Vm, answers: Answers) -> None:
    version = answers.mapping("version").get("qemu", {})
    if version:
        vm.version = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
    vm.cpr_vfork = "cpr_vfork" in answers.said
    vm.vfork_blockers = answers.mapping("cpr_vfork").get("blocked-reasons")
    vm.status = answers.mapping("status").get("status")
    if "migration" in answers.said:
        vm.migration_status = answers.mapping("migration").get("status", "none")
        vm.migration_blockers = list(answers.mapping("migration").get("blocked-reasons", []))


def monitors(pid: int, options: list[Option]) -> tuple[list[str], list[str]]:
    """Return the paths of QMP monitors on UNIX sockets, and in words all other monitors (HMP, TCP, abstract)."""
    chardevs = {}
    for option in devices.named(options, "chardev"):
        fields = devices.fields_of(option, "backend")
        chardevs[fields.get("id", "")] = fields
    paths: list[str] = []
    others: list[str] = []
    for kind, target in _declared_monitors(options, chardevs):
        path = _unix_path(pid, target) if kind == "qmp" else None
        if path:
            paths.append(path)
        elif target.get("backend") not in ("none", "null"):
            others.append(f"{kind} {_in_words(target)}")
    return paths, others


def _declared_monitors(
    options: list[Option], chardevs: dict[str, dict[str, str]]
) -> Iterable[tuple[str, dict[str, str]]]:
    for option in options:
        if option.name in ("qmp", "qmp-pretty", "monitor"):
            kind = "hmp" if option.name == "monitor" else "qmp"
            yield kind, _character_device(option.value or "", chardevs)
        elif option.name == "mon":
            fields = devices.fields_of(option, "chardev")
            if fields.get("chardev", "").startswith(PRIVATE_MONITOR):
                continue  # over it a hand-over was driven; of no use any more once the VM runs
            kind = "qmp" if fields.get("mode") == "control" else "hmp"
            yield kind, chardevs.get(fields.get("chardev", ""), {"backend": "unknown"})


def _character_device(text: str, chardevs: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the fields of ``-qmp``'s short form: ``unix:PATH,server=on``, ``chardev:ID``, ``tcp:...``, ``stdio``."""
    kind, _colon, rest = text.partition(":")
    if kind == "chardev":
        return chardevs.get(rest, {"backend": "unknown"})
    if kind == "unix":
        return {**parse_keyval(rest, "path"), "backend": "socket"}
    return {"backend": kind, "address": rest}


def _unix_path(pid: int, fields: dict[str, str]) -> str | None:
    if fields.get("backend") != "socket" or fields.get("abstract") in ("on", "yes", "true"):
        return None
    path = fields.get("path")
    if path is None and fields.get("fd", "").isdigit():
        path = listener_path(pid, int(fields["fd"]))
    if path is None:
        return None
    return path if os.path.isabs(path) else os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)


def _in_words(fields: dict[str, str]) -> str:
    details = [fields[key] for key in ("path", "address", "host", "port", "fd") if fields.get(key)]
    return ":".join([fields.get("backend", "unknown"), *details])


def _options(argv: list[str]) -> tuple[list[Option], list[str]]:
    try:
        return parse(argv), []
    except (LiveUpgradeError, ValueError) as exc:
        return [], [f"its command line cannot be read: {exc}"]


def _name(process: Process, options: list[Option]) -> str:
    given: dict[str, str] = {}
    for option in devices.named(options, "name"):
        given.update(devices.fields_of(option, "guest"))
    return given.get("guest") or unit_instance(process.unit) or f"pid-{process.pid}"


def _version_of_build(build_id: str | None) -> str | None:
    match = re.fullmatch(r"qemu-([0-9.]+)-[0-9a-f]{16}", build_id or "")
    return match[1] if match else None


def _machine_type(options: list[Option], answers: Answers) -> str | None:
    """Return the full name of the machine type; an alias such as ``q35`` only when QEMU cannot be asked."""
    name = answers.text("machine")
    if name:
        return name[: -len(_MACHINE_SUFFIX)] if name.endswith(_MACHINE_SUFFIX) else name
    given = None
    for option in devices.named(options, "machine", "M"):
        given = devices.fields_of(option, "type").get("type", given)
    return given


def _accelerator(options: list[Option], links: dict[int, str]) -> str:
    if any(link.startswith("anon_inode:kvm-vm") for link in links.values()):
        return "kvm"
    for option in devices.named(options, "accel"):
        accel = devices.fields_of(option, "accel").get("accel")
        if accel and accel != "kvm":
            return accel
    return "tcg"


def _kvm_device(vm: Vm, options: list[Option], links: dict[int, str]) -> str | None:
    """Return the node that is open; where none can be recognized by its name, the one that QEMU was told to open."""
    if vm.accelerator != "kvm":
        return None
    held = kvm_descriptor(vm.pid, links)
    return held[1] if held else kvm_node_named(options) or DEFAULT_NODE


def _security_label(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/attr/current").read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None  # no security module that labels processes


def _point_out_namesakes(vms: list[Vm]) -> None:
    counts = Counter(vm.name for vm in vms)
    for vm in vms:
        if counts[vm.name] > 1:
            pids = ", ".join(str(other.pid) for other in vms if other.name == vm.name and other.pid != vm.pid)
            vm.problems.append(f"another process bears the same name: {pids}")
