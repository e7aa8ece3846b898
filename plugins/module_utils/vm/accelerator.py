# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a command line that choose KVM and the node it is opened through. PRIVATE to the collection."""

from __future__ import annotations

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    Option,
    format_keyval,
    parse_keyval,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import Draft
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm

DEFAULT_NODE = "/dev/kvm"
_MACHINE = ("machine", "M")
_STAY = "leave kvm_build_id out for this VM, or shut it down and start it on the other KVM"


def on_kvm(vm: Vm, options: list[Option], node: str | None, draft: Draft) -> list[Option]:
    """Return the options of the process that follows ``vm``: on the KVM behind ``node``, or with None on the one that it has.

    Without ``node`` they stay as they are, unless the program's name made QEMU choose KVM: that is another name now.
    """
    if vm.accelerator != "kvm" or (node is None and chooses_accelerator(options)):
        return options
    if (kvm_node_named(options) or "").startswith("/dev/fdset/"):
        message = "-accel device=/dev/fdset/...: the descriptor of one KVM would be kept by a process on another"
        draft.problem("option-refused", message, _STAY)
    if node is not None and node != vm.kvm_device:
        draft.change(f"KVM is opened through {node}, and no longer through {vm.kvm_device}")
    return with_kvm_node(options, node or vm.kvm_device or DEFAULT_NODE)


def kvm_node_named(options: list[Option]) -> str | None:
    """Return the node that ``-accel kvm,device=`` names; None when none is named, which means ``/dev/kvm``."""
    for option in options:
        if option.name == "accel":
            fields = parse_keyval(option.value or "", "accel")
            if fields.get("accel") == "kvm" and "device" in fields:
                return fields["device"]
    return None


def chooses_accelerator(options: list[Option]) -> bool:
    """Tell whether any option does; else QEMU goes by the name of its program, and prefers KVM when it ends with ``kvm``."""
    return any(_accelerator_fields(option) is not None for option in options)


def with_kvm_node(options: list[Option], node: str) -> list[Option]:
    """Return the options of a VM that runs on KVM so that it opens ``node``; all other properties of KVM are kept.

    One ``-accel`` takes the place of all that chose an accelerator (QEMU refuses ``-accel`` beside ``accel=`` of a machine).
    What QEMU was to fall back on goes: the guest runs on KVM, and would be given to TCG when the node cannot be opened.
    """
    kvm: dict[str, str] = {"accel": "kvm"}
    place = None
    kept: list[Option] = []
    for option in options:
        fields = _accelerator_fields(option)
        if fields is None:
            kept.append(option)
            continue
        place = len(kept) if place is None else place
        if option.name == "accel" and fields["accel"] == "kvm" and len(kvm) == 1:
            kvm = fields
        if option.name in _MACHINE:
            kept += _machine_without(option)
    accel = Option("accel", format_keyval({**kvm, "device": node}, "accel"))
    place = len(kept) if place is None else place
    return [*kept[:place], accel, *kept[place:]]


def _accelerator_fields(option: Option) -> dict[str, str] | None:
    """Return the fields of an option that chooses an accelerator, ``accel`` among them; None for any other option."""
    if option.name == "enable-kvm":
        return {"accel": "kvm"}
    if option.name == "accel":
        fields = parse_keyval(option.value or "", "accel")
    elif option.name in _MACHINE:
        fields = parse_keyval(option.value or "", "type")
    else:
        return None
    return fields if "accel" in fields else None


def _machine_without(option: Option) -> list[Option]:
    """Properties of KVM that a machine takes (``kernel-irqchip``) stay with it: QEMU hands them on."""
    fields = parse_keyval(option.value or "", "type")
    del fields["accel"]
    return [Option(option.name, format_keyval(fields, "type"))] if fields else []
