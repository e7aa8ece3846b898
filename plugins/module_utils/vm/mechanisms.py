# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which mechanisms a VM can be moved, as far as the VM itself decides. The new build has its say in ``preflight``.

Each obstacle has a code, so that preflight can tell the operator what to do about it; the codes are described in
docs/preflight.md. PRIVATE to the collection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.devices import fields_of, named
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Mechanism, RamBlock, Vm

OLDEST_CPR = (10, 2)
# Before this a source with VFIO devices does not survive a target that dies early.
OLDEST_CPR_VFIO = (11, 1)
_VFIO = re.compile(r"vfio-.*")
_NICS_OF_ONE_PROCESS = ("vhost-user", "vhost-vdpa", "vde", "l2tpv3", "af-xdp", "passt")
_MIGRATION_IDLE = {None, "none", "completed", "failed", "cancelled"}
# QEMU lists the obstacles to the mode that is set, which is "normal" as a rule. These do not matter to CPR, because the
# new process opens the same files and devices on the same host.
_NORMAL_MODE_ONLY = re.compile(
    r"The .* format used by node '.*' does not support live migration"
    r"|.*VFIO (device )?migration|.*[Mm]ultiple VFIO devices migration|.*vhost lacks VHOST_F_LOG_ALL"
    r"|.*vhost-scsi does not support migration in all cases|.*failed to allocate shared memory"
)
_VFIO_STATE = re.compile(r"[0-9a-f:.]+: *(VFIO|.*dirty page tracking)", re.I)


@dataclass(frozen=True)
class Obstacle:
    """Why something is not possible: ``code`` for machines and the manual, ``message`` for people."""

    code: str
    message: str


def judge(vm: Vm, options: list[Option]) -> dict[str, Mechanism]:
    """Return mechanism → whether ``vm`` can be moved by it, and why not."""
    common = [*common_obstacles(vm), *command_obstacles(vm, options)]
    transfer = [*common, *vfio_transfer_obstacles(vm)]
    vfork = [*common, *vfork_obstacles(vm, options)]
    execute = [*transfer, *_sandbox_obstacles(options)]
    migration = [*_state_obstacles(vm), *_local_migration_obstacles(vm)]
    return {
        "vfork": _mechanism(vfork, []),
        "cpr-transfer": _mechanism(transfer, []),
        "cpr-exec": _mechanism(execute, ["only when asked for: after the exec there is no way back"]),
        "local-migration": _mechanism(
            migration, ["only when asked for: needs a second copy of guest memory for a while"]
        ),
    }


def common_obstacles(vm: Vm) -> list[Obstacle]:
    """Return why neither ``vfork`` nor ``cpr-transfer`` can move ``vm``, whatever its new command line is."""
    return [
        *_state_obstacles(vm),
        *_version_obstacles(vm),
        *_ram_obstacles(vm.ram_blocks),
        *_device_obstacles(vm),
        *_blocker_obstacles(vm),
    ]


def vfork_obstacles(vm: Vm, options: list[Option]) -> list[Obstacle]:
    """Return what stands in the way of ``vfork`` alone."""
    found = []
    if not vm.cpr_vfork:
        found.append(Obstacle("vfork-unavailable", "the QEMU that the VM runs has no mode cpr-vfork"))
    elif has_vfio(vm):
        if vm.vfork_blockers is None:
            message = "the mode cpr-vfork of the QEMU that the VM runs is too old to hand VFIO devices over"
            found.append(Obstacle("vfork-unavailable", message))
        found += [Obstacle("vfork-blocked", f"QEMU says: {reason}") for reason in vm.vfork_blockers or []]
    return [*found, *_sandbox_obstacles(options)]


def has_vfio(vm: Vm) -> bool:
    """Tell whether the VM has a device of the host through VFIO."""
    return any(_VFIO.fullmatch(device.driver) for device in vm.passthrough)


def vfio_transfer_obstacles(vm: Vm) -> list[Obstacle]:
    """Return what stands in the way of ``cpr-transfer`` alone: a risk, which a person may accept."""
    if not has_vfio(vm) or not vm.version_tuple or vm.version_tuple[:2] >= OLDEST_CPR_VFIO:
        return []
    message = f"QEMU {vm.version} loses a VM with VFIO devices when the new process of a cpr-transfer dies early"
    return [Obstacle("vfio-too-old", message)]


def command_obstacles(vm: Vm, options: list[Option]) -> list[Obstacle]:
    """Return what two processes cannot have at once, as far as the command line tells.

    ``recreate.plan_command`` knows more, but has to ask the VM and needs a build.
    """
    found = _listeners(options)
    found += [f"-netdev {nic.backend},id={nic.id}" for nic in vm.nics if nic.backend in _NICS_OF_ONE_PROCESS]
    message = "two processes cannot have this at once: {}"
    return [Obstacle("command-not-recreatable", message.format(", ".join(found)))] if found else []


def _mechanism(obstacles: list[Obstacle], terms: list[str]) -> Mechanism:
    return Mechanism(not obstacles, [obstacle.message for obstacle in obstacles] or terms)


def _state_obstacles(vm: Vm) -> list[Obstacle]:
    if vm.status is None:
        return [Obstacle(*_silence(vm))]
    if vm.migration_status not in _MIGRATION_IDLE and vm.status != "inmigrate":
        return [Obstacle("migration-running", f"the VM is in a migration ({vm.migration_status})")]
    if vm.status in ("inmigrate", "postmigrate", "finish-migrate"):
        return [
            Obstacle(
                "half-moved", f"the process is one side of a migration (state {vm.status}); its guest is elsewhere"
            )
        ]
    if vm.status != "running":
        return [Obstacle("vm-not-running", f"the VM is not running (state {vm.status})")]
    return []


def _silence(vm: Vm) -> tuple[str, str]:
    states = {endpoint.state for endpoint in vm.qmp_endpoints}
    told = "; ".join(f"{endpoint.path}: {endpoint.detail or endpoint.state}" for endpoint in vm.qmp_endpoints)
    if vm.stopped:
        return "process-stopped", "the process is stopped by a signal; it runs neither the guest nor its monitor"
    if not states:
        others = f" (it has: {', '.join(vm.other_monitors)})" if vm.other_monitors else ""
        return "qmp-missing", f"the VM has no QMP monitor on a UNIX socket{others}"
    if "ok" in states:
        return "qmp-silent", "the monitor greets, but does not answer questions"
    if "busy" in states:
        return "qmp-busy", f"no QMP monitor can be used: {told}"
    return "qmp-dead", f"no QMP monitor can be used: {told}"


def _version_obstacles(vm: Vm) -> list[Obstacle]:
    if vm.version_tuple and vm.version_tuple[:2] < OLDEST_CPR:
        return [
            Obstacle(
                "qemu-too-old", f"QEMU {vm.version} is older than 10.2, the first that hands over a guest reliably"
            )
        ]
    return []


def _ram_obstacles(blocks: list[RamBlock]) -> list[Obstacle]:
    obstacles = []
    private = [block.id for block in blocks if block.shared is False and block.backend]
    auxiliary = [block.id for block in blocks if block.shared is False and not block.backend]
    unknown = [block.id for block in blocks if block.shared is None]
    if private:
        obstacles.append(Obstacle("ram-private", f"guest memory is private to the process: {', '.join(private)}"))
    if auxiliary:
        message = f"memory that QEMU allocates by itself is private to the process: {', '.join(auxiliary)}"
        obstacles.append(Obstacle("aux-ram-private", message))
    if unknown:
        obstacles.append(Obstacle("ram-unknown", f"it cannot be told whether these are shared: {', '.join(unknown)}"))
    return obstacles


def _device_obstacles(vm: Vm) -> list[Obstacle]:
    obstacles = []
    for device in vm.passthrough:
        if not _VFIO.fullmatch(device.driver):
            who = f"{device.driver} {device.id or device.host}".strip()
            obstacles.append(Obstacle("device-not-coverable", f"{who} cannot be handed to another process"))
    return obstacles


def _blocker_obstacles(vm: Vm) -> list[Obstacle]:
    relevant = [
        reason
        for reason in vm.migration_blockers
        if not _NORMAL_MODE_ONLY.match(reason) and not (vm.passthrough and _VFIO_STATE.match(reason))
    ]
    return [Obstacle("migration-blocked", f"QEMU says: {reason}") for reason in relevant]


def _listeners(options: list[Option]) -> list[str]:
    found = [f"-{option.name} {option.value}" for option in named(options, "vnc", "spice") if option.value != "none"]
    found += [f"-display {option.value}" for option in named(options, "display") if _serves(option.value or "")]
    found += ["-s" if option.name == "s" else f"-gdb {option.value}" for option in named(options, "s", "gdb")]
    for option in named(options, "netdev", "nic"):
        fields = fields_of(option, "type")
        # A key given twice keeps its last value in the fields; one is enough to know.
        if fields.get("type") == "user" and ("hostfwd" in fields or "guestfwd" in fields):
            found.append(f"-{option.name} user,hostfwd=...")
        if fields.get("type") in ("socket", "stream", "dgram") and ("listen" in fields or fields.get("server") == "on"):
            found.append(f"-{option.name} {fields['type']},...")
    return found


def _serves(display: str) -> bool:
    return display.startswith(("vnc", "spice", "dbus", "gtk", "sdl"))


def _sandbox_obstacles(options: list[Option]) -> list[Obstacle]:
    for option in named(options, "sandbox"):
        if fields_of(option, "enable").get("spawn") == "deny":
            return [Obstacle("sandbox-spawn", "-sandbox spawn=deny forbids the process to execute anything")]
    return []


def _local_migration_obstacles(vm: Vm) -> list[Obstacle]:
    obstacles = [Obstacle("migration-blocked", f"QEMU says: {reason}") for reason in vm.migration_blockers]
    if vm.passthrough:
        devices = ", ".join(device.id or device.host for device in vm.passthrough)
        obstacles.append(Obstacle("device-not-coverable", f"passthrough devices do not migrate: {devices}"))
    return obstacles
