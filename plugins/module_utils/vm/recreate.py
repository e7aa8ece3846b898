# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Re-create the command line of a running VM for a new QEMU that takes its guest over while the old one still lives.

Three things differ from the old one: the program, what two processes cannot have at once (listening sockets, taps: handed
over open), and what has changed since the VM was started (devices plugged and unplugged). What cannot be re-created
exactly is a Problem, never a guess. docs/command-line.md is the reference. PRIVATE to the collection.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.accelerator import on_kvm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.backends import (
    PRIVATE_MONITOR,
    CharacterDevices,
    NetworkBackends,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    Option,
    format_keyval,
    parse,
    parse_keyval,
    render,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import (
    PIDFILE_VARIABLE,
    CommandPlan,
    Draft,
    InheritedFd,
    Problem,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.drives import Drives
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.handover import HeldDescriptors
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.hotplug import RunTimeChanges
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.running import RunningState

__all__ = ["CommandPlan", "InheritedFd", "Problem", "diff", "plan_command"]

_BINARY = "bin/qemu-system-x86_64"
_WITHOUT_IT = "restart the VM without it, or shut it down and start it on the new build"
# Told to the new process by the engine, or only of use to the start of the first one.
_DROPPED = {"S", "daemonize", "incoming", "loadvm"}
_REFUSED = {
    "chroot": "a process in a chroot cannot have a twin",
    "gdb": "a debugger's socket cannot be handed over",
    "s": "a debugger's socket cannot be handed over",
    "snapshot": "its temporary disk images are known to the old process alone",
    "readconfig": "options are hidden in a file that may have changed since",
    "preconfig": "what was configured by hand before the machine was made is not known",
    "spice": "SPICE cannot be handed over",
    "tpmdev": "a TPM back end serves one process at a time",
    "curses": "it is drawn on the terminal of the old process",
    "sdl": "its window belongs to the old process",
    "net": "this legacy form hides which device belongs to which back end",
    "nic": "this legacy form hides which device belongs to which back end",
}
_REFUSED_OBJECTS = (
    "sev-guest",
    "sev-snp-guest",
    "tdx-guest",
    "x-remote-object",
    "x-vfio-user-server",
    "cryptodev-vhost-user",
)
_REFUSED_DEVICES = ("vhost-user-", "vhost-vdpa-", "vhost-scsi", "vfio-user-", "ivshmem-doorbell", "x-pci-proxy")
_OFF = ("off", "no", "false", "n")
_WINDOWLESS = ("none", "egl-headless")
_SHORT_FORMS = ("serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon")
_FILES = {
    "kernel": None,
    "initrd": None,
    "dtb": None,
    "shim": None,
    "fw_cfg": "file",
    "acpitable": "file",
    "smbios": "file",
}


def plan_command(vm: Vm, qmp: QmpClient, build_dir: Path, mechanism: str, kvm_node: str | None = None) -> CommandPlan:
    """Return the command line with which the build in ``build_dir`` takes ``vm`` over. Reads, changes nothing.

    ``qmp`` is a session with the VM. ``kvm_node``: the node of KVM to open, None for the one that it has. Raises
    ``LiveUpgradeError`` when the VM or its process cannot be read.
    """
    options = parse(vm.argv)
    draft = Draft(vm.pid, os.readlink(f"/proc/{vm.pid}/cwd"), options, of_child=mechanism == "vfork")
    recreation = _Recreation(vm, RunningState.read(qmp), draft, build_dir)
    words = render(on_kvm(vm, recreation.options(options), kvm_node, draft))
    return CommandPlan(
        argv=[str(build_dir / _BINARY), *words],
        fds=draft.fds,
        changes=draft.changes,
        problems=draft.problems,
        pidfile=recreation.pidfile,
        clients=draft.clients,
    )


def diff(old_argv: list[str], new_argv: list[str]) -> tuple[str, str]:
    """Return both command lines as texts with one option a line, for a readable difference."""
    before, after = ("".join(f"{line}\n" for line in _lines(argv)) for argv in (old_argv, new_argv))
    return before, after


def _lines(argv: list[str]) -> list[str]:
    return [argv[0], *(" ".join(render([option])) for option in parse(argv))]


class _Recreation:
    """One walk over the options of a VM, each handled by the method or table that knows it."""

    def __init__(self, vm: Vm, state: RunningState, draft: Draft, build_dir: Path) -> None:
        self.pidfile = _pidfile_before(vm.pid)
        self._vm = vm
        self._state = state
        self._draft = draft
        self._build_dir = build_dir
        self._held = HeldDescriptors(vm.pid)
        self._drives = Drives(draft, state)
        self._network = NetworkBackends(draft, self._held, (vm.uid, vm.gid), state.netdevs)
        self._fdsets = {number: list(fds) for number, fds in state.fdsets.items()}

    def options(self, old: list[Option]) -> list[Option]:
        """Return the options of the new process, without the program."""
        changes = RunTimeChanges(self._draft, self._held, self._state, old)
        still = changes.still_there()
        added = changes.added()
        monitors = {
            parse_keyval(option.value or "", "chardev").get("chardev", "") for option in old if option.name == "mon"
        }
        characters = CharacterDevices(self._draft, self._held, self._state.chardevs, monitors)
        self._network.claim(old)
        handlers = self._handlers(characters)
        new = []
        for option in [*still, *added]:
            new += handlers.get(option.name, self._as_it_is)(option)
        return [*new, *self._fdsets_added()]

    def _handlers(self, characters: CharacterDevices) -> dict[str, Callable[[Option], list[Option]]]:
        handlers: dict[str, Callable[[Option], list[Option]]] = {
            **dict.fromkeys(_DROPPED, lambda option: []),
            **dict.fromkeys(_REFUSED, self._refused),
            **dict.fromkeys(_SHORT_FORMS, characters.short_form),
            **dict.fromkeys(_FILES, self._file),
            "L": self._data_directory,
            "pidfile": self._pid_file,
            "runas": self._run_as,
            "run-with": self._run_with,
            "mon": self._monitor,
            "chardev": characters.chardev,
            "netdev": self._network.netdev,
            "drive": self._drives.drive,
            "object": self._object,
            "device": self._device,
            "display": self._display,
            "vnc": self._vnc,
            "add-fd": self._fdset,
            "D": self._log,
        }
        return handlers

    # --- the process

    def _data_directory(self, option: Option) -> list[Option]:
        """A build has its firmware beside it; that of the old one is not for the new one."""
        directory = Path(os.path.realpath(self._draft.path(option.value or "")))
        store = Path(os.path.realpath(self._build_dir)).parent
        inside = (
            Path("/") / directory.relative_to(f"/proc/{self._vm.pid}/root") if _below_proc(directory) else directory
        )
        if store in inside.parents or Path(self._vm.exe).parent.parent / "share" in inside.parents:
            self._draft.change(f"-L {option.value} is dropped: the new build brings its own firmware")
            return []
        return [option]

    def _pid_file(self, option: Option) -> list[Option]:
        path = str(Path(self._draft.working_directory) / (option.value or ""))
        if self._draft.of_child:
            self.pidfile = None
            return [Option("pidfile", path)]  # a child takes the file over with the guest
        self.pidfile = path
        self._draft.change(f"-pidfile is dropped: the upgrade writes the new pid into {self.pidfile}")
        return []

    def _run_as(self, option: Option) -> list[Option]:
        self._check_user(option.value or "")
        return []

    def _run_with(self, option: Option) -> list[Option]:
        fields = parse_keyval(option.value or "")
        if "chroot" in fields:
            return self._refused(Option("chroot", fields["chroot"]))
        if fields.get("exit-with-parent", "off") not in _OFF:
            return self._refused(option, "the new process would have another parent")
        if "user" not in fields:
            return [option]
        self._check_user(fields["user"])
        others = [item for item in (option.value or "").split(",") if not item.startswith("user=")]
        return [Option("run-with", ",".join(others))] if others else []

    def _check_user(self, name: str) -> None:
        """The new process is started as the user that the old one has become."""
        try:
            uid = int(name.partition(":")[0]) if ":" in name else pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            uid = -1
        if uid != self._vm.uid:
            self._draft.problem(
                "user-unclear", f"the process should run as {name}, but runs as user {self._vm.uid}", _WITHOUT_IT
            )

    def _log(self, option: Option) -> list[Option]:
        if not self._draft.of_child:
            self._draft.change(f"the log file {option.value} begins anew")
        return [option]

    def _file(self, option: Option) -> list[Option]:
        key = _FILES[option.name]
        name = option.value if key is None else parse_keyval(option.value or "", "name").get(key)
        for path in [name] if name else []:
            if not self._draft.path(path).exists():
                self._draft.problem(
                    "file-gone", f"-{option.name}: {path} does not exist any more", "put the file back, then ask again"
                )
        return [option]

    # --- what the guest sees

    def _monitor(self, option: Option) -> list[Option]:
        chardev = parse_keyval(option.value or "", "chardev").get("chardev", "")
        return [] if chardev.startswith(PRIVATE_MONITOR) else [option]

    def _object(self, option: Option) -> list[Option]:
        fields = parse_keyval(option.value or "", "qom-type")
        if fields.get("qom-type", "") in _REFUSED_OBJECTS:
            return self._refused(option, "its state belongs to the old process")
        self._inherit_given(fields, f"-object {fields.get('id', '')}")
        return [option]

    def _device(self, option: Option) -> list[Option]:
        fields = parse_keyval(option.value or "", "driver")
        if fields.get("driver", "").startswith(_REFUSED_DEVICES):
            return self._refused(option, "its back end serves one process at a time")
        if "vhostfd" in fields:
            return self._refused(option, "a vhost descriptor belongs to one process")
        self._drives.device(fields)
        self._inherit_given(fields, f"-device {fields.get('id', fields.get('driver', ''))}")
        return [option]

    def _inherit_given(self, fields: dict[str, str], purpose: str) -> None:
        given = fields.get("fd", "")
        if given.isdigit() and self._held.is_open(int(given)):
            self._draft.inherit(int(given), purpose, int(given))
        elif given:
            self._draft.problem("descriptor-gone", f"{purpose}: descriptor {given} is not open any more", _WITHOUT_IT)

    def _display(self, option: Option) -> list[Option]:
        kind = parse_keyval(option.value or "", "type").get("type", "")
        return [option] if kind in _WINDOWLESS else self._refused(option, "it belongs to the old process")

    def _vnc(self, option: Option) -> list[Option]:
        return [option] if option.value == "none" else self._refused(option, "VNC cannot be handed over")

    # --- descriptors

    def _fdset(self, option: Option) -> list[Option]:
        """QEMU duplicates what ``-add-fd`` names and closes it: the duplicate, under another number, is what there is."""
        fields = parse_keyval(option.value or "")
        members = self._fdsets.get(int(fields.get("set", "-1")), [])
        member = next((item for item in members if item.opaque == fields.get("opaque")), None)
        if member is None:
            self._draft.problem(
                "descriptor-gone",
                f"-add-fd {option.value}: the set does not hold this descriptor any more",
                "run the upgrade after the next start of the VM",
            )
            return [option]
        members.remove(member)
        number = self._draft.inherit(member.fd, f"file set {fields['set']}", int(fields["fd"]))
        return [Option("add-fd", format_keyval({**fields, "fd": str(number)}))]

    def _fdsets_added(self) -> list[Option]:
        added = []
        for number, members in sorted(self._fdsets.items()):
            for member in members:
                fd = self._draft.inherit(member.fd, f"file set {number}")
                opaque = "" if member.opaque is None else ",opaque=" + member.opaque.replace(",", ",,")
                added.append(Option("add-fd", f"fd={fd},set={number}{opaque}"))
        return added

    # --- the rest

    def _refused(self, option: Option, why: str | None = None) -> list[Option]:
        none = option.name in ("net", "nic") and option.value == "none"
        if not none:
            words = " ".join(render([option]))
            self._draft.problem("option-refused", f"{words}: {why or _REFUSED[option.name]}", _WITHOUT_IT)
        return [option]

    def _as_it_is(self, option: Option) -> list[Option]:
        if option.name == "nographic":
            return self._refused(
                option, "it uses the terminal of the old process (-display none is the same without it)"
            )
        return [option]


def _pidfile_before(pid: int) -> str | None:
    """Return the pid file that process ``pid``, which an earlier upgrade started, has without an option."""
    prefix = f"{PIDFILE_VARIABLE}=".encode()
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((os.fsdecode(entry.removeprefix(prefix)) for entry in entries if entry.startswith(prefix)), None)


def _below_proc(path: Path) -> bool:
    return path.parts[:2] == ("/", "proc")
