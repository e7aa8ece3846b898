# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a VM with devices. Also runs on the emulated host: Python's standard library only."""

from __future__ import annotations

from dataclasses import dataclass

# By these names the emulated host has them: ours and stock, of the older and the newer series.
OLD, NEW, STOCK_OLD, STOCK = "old", "new", "stock-old", "stock"
ALL: tuple[str, ...] = ()
# What a device counts that must not be more than nothing.
BAD = ("io_errors", "mismatches", "lost_interrupts", "extra_interrupts")
# How a VM is started: its QEMU may lock no more memory than its limit says; the same with an iommufd that is given as an open
# descriptor, and counts for the process; or devices are given as open descriptors.
LIMITED, OF_PROCESS, BY_DESCRIPTOR = "limited", "counted for the process", "by descriptor"
# Or each device has an iommufd of its own.
APART = "apart"


@dataclass(frozen=True)
class Case:
    """``act`` names a function of host/acts.py, which gets ``arguments``.

    ``on``: the build that the VM is on before it; another VM is started where it is not. Empty: whichever it is on.
    ``to``: the build it is offered. ``devices``: what the VM has, in this order; all that the host has without it.
    ``plugged``: those of them that are plugged in while it runs. ``late``: those that the guest does not use before it is told
    to. ``spare``: what the host has besides. ``properties``: what each is given besides.
    ``way``: how the VM is started, when not like any other. ``backend``: the only one that the case is for.
    ``cores``: the VM is on a core of KVM under kvm_thin, not on the kernel's own KVM. ``remaps``: the guest changes what is
    mapped for devices.
    ``complaint``: what the act is to complain of, in a pattern. ``lost``: the VM is to be lost. Both are of cases that are to go
    wrong, and show that it is seen when something does.
    """

    name: str
    title: str
    act: str
    arguments: tuple[str, ...] = ()
    on: str = ""
    to: str = NEW
    devices: tuple[str, ...] = ALL
    plugged: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    properties: str = ""
    way: str = ""
    backend: str = ""
    cores: bool = False
    remaps: bool = False
    complaint: str = ""
    lost: bool = False


def _aborted(fault: str, title: str) -> Case:
    return Case(f"aborted-{fault.replace(':', '-')}", f"aborted: the new QEMU {title}", "abort", (fault,))


# In the order of the phases; the VM goes from one case to the next.
VFORK = (
    Case("upgrade", "upgrade", "vfork", on=OLD),
    Case("rehearsal", "rehearsal", "rehearse"),
    _aborted("ready:exit", "ends before it is ready"),
    _aborted("ready:kill", "is killed before it is ready"),
    Case("aborted-cancelled", "aborted: cancelled", "cancel"),
    Case("aborted-machine", "aborted: the new QEMU is another machine", "abort_machine"),
    _aborted("remapped:exit", "ends when it has the first DMA maps"),
    _aborted("remapped:kill", "is killed when it has the first DMA maps"),
    _aborted("remapped:stop", "hangs when it has the first DMA maps"),
    _aborted("remapped:fail", "cannot take the other DMA maps"),
    _aborted("loaded:exit", "ends in the pause"),
    _aborted("loaded:kill", "is killed in the pause"),
    _aborted("loaded:stop", "hangs in the pause"),
    _aborted("committed:exit", "ends before it takes the guest"),
    _aborted("committed:stop", "hangs before it takes the guest"),
    Case("old-killed", "upgrade whose old QEMU is killed after it gave the guest away", "kill_old"),
    Case("back", "back to the old build", "vfork", on=NEW, to=OLD),
    # The last of its VM, which is not to be moved any more.
    Case(
        "aborted-old-detached-fail",
        "aborted: the old QEMU cannot give the devices away",
        "abort_old",
        ("old-detached:fail",),
    ),
    Case("core-switch", "switch to another KVM core", "switch_core", on=NEW, cores=True),
)
# What a stock QEMU does well, and what it loses VMs by: the harness sees the one and the other.
STOCK_CASES = (
    Case("upgrade", "upgrade by cpr-transfer", "transfer", on=STOCK, to=STOCK, devices=("nvme",)),
    Case(
        "target-refuses",
        "the new QEMU refuses the state, return-path on",
        "transfer_refused",
        ("return-path",),
        on=STOCK,
        to=STOCK,
        devices=("nvme",),
    ),
    Case(
        "no-return-path",
        "the same with return-path off",
        "transfer_refused",
        on=STOCK,
        to=STOCK,
        devices=("nvme",),
        complaint="completed",
        lost=True,
    ),
    Case(
        "target-dies",
        "10.2: the new QEMU dies before it has connected",
        "transfer_killed",
        on=STOCK_OLD,
        to=STOCK_OLD,
        devices=("nvme",),
        complaint="QmpDeadError",
        lost=True,
    ),
    Case(
        "busy-registers",
        "upgrade while the guest writes to registers",
        "transfer",
        on=STOCK,
        to=STOCK,
        devices=("edu", "edu-intx"),
        lost=True,
    ),
)
# What else happens to a VM around a hand-over. edu is no device for a guest that reboots: nothing resets it, and an interrupt
# that it was asked for before comes after.
_TWO = ("nvme", "e1000e")
_PLUGGED = ("nvme", "edu")
_UNDONE = ("nvme", "edu", "edu-intx")
_ALONE = ("edu",)
EVENTS = (
    Case(
        "old-refuses",
        "upgrade whose old QEMU is asked to run and to reset the guest after it",
        "old_refuses",
        on=OLD,
        devices=_TWO,
    ),
    Case(
        "extra-device",
        "aborted: the new QEMU has a device more",
        "extra_device",
        ("edu",),
        devices=_TWO,
        spare=("edu",),
    ),
    Case("missing-device", "aborted: the new QEMU has a device less", "missing_device", devices=_TWO),
    Case("rebooted", "aborted: the guest reboots while the new QEMU gets ready", "reboot", devices=_TWO, remaps=True),
    Case("after-reboot", "upgrade after that", "vfork", devices=_TWO),
    Case("started-new", "upgrade of a VM that the new build has started", "vfork", on=NEW, devices=("nvme",)),
    Case(
        "dma-buf",
        "refused: the memory of a device is mapped for other devices",
        "refused",
        ("x-dma-buf=on",),
        on=NEW,
        devices=("nvme",),
        properties="x-dma-buf=on",
        backend="iommufd",
    ),
    Case(
        "plugged-aborted",
        "aborted: the new QEMU is killed in the pause, with a device that was plugged in",
        "abort",
        ("loaded:kill",),
        on=OLD,
        devices=_PLUGGED,
        plugged=("edu",),
    ),
    Case("plugged", "upgrade with a device that was plugged in", "vfork", devices=_PLUGGED, plugged=("edu",)),
    Case("plugged-back", "back to the old build", "vfork", to=OLD, devices=_PLUGGED, plugged=("edu",)),
    Case(
        "late-failure",
        "aborted: a device of the new QEMU fails once it has it",
        "late_failure",
        on=OLD,
        devices=_UNDONE,
    ),
    Case("twice", "aborted: a device is given to the new QEMU twice", "twice", devices=_UNDONE),
    Case("after-failures", "upgrade after that", "vfork", devices=_UNDONE),
    Case(
        "unplugged",
        "the only device is unplugged, and plugged in again",
        "unplug",
        on=OLD,
        devices=_ALONE,
        plugged=_ALONE,
        remaps=True,
    ),
    Case(
        "unplugged-rehearsed",
        "the same after a rehearsal",
        "unplug",
        ("rehearsal",),
        devices=_ALONE,
        plugged=_ALONE,
        remaps=True,
    ),
    Case(
        "unplugged-aborted",
        "the same after an upgrade that was aborted in the pause",
        "unplug",
        ("loaded:kill",),
        devices=_ALONE,
        plugged=_ALONE,
        remaps=True,
    ),
    Case(
        "asked-back",
        "the host takes the device back, after it has failed in a new QEMU",
        "ask_back",
        devices=_ALONE,
        plugged=_ALONE,
        remaps=True,
    ),
    Case("replugged", "upgrade after that", "vfork", devices=_ALONE, plugged=_ALONE),
    Case(
        "unplugged-first",
        "the first of two devices with an iommufd each is unplugged, and after an upgrade plugged in again, and upgraded",
        "unplug_first",
        on=OLD,
        devices=("edu", "nvme"),
        plugged=("edu", "nvme"),
        way=APART,
        backend="iommufd",
        remaps=True,
    ),
    Case(
        "intx-pending",
        "upgrades of a guest that stands still with an interrupt that QEMU itself has raised",
        "intx_pending",
        on=OLD,
        devices=("edu-intx",),
        properties="x-no-kvm-intx=on",
        remaps=True,  # without direct access to a device, others cannot reach its memory either
    ),
    Case("intx-after", "upgrade after that", "vfork", devices=("edu-intx",), properties="x-no-kvm-intx=on"),
    Case(
        "msi-pending",
        "upgrades of a guest that stands still with an interrupt that came after QEMU had looked at its vCPU",
        "msi_pending",
        on=OLD,
        devices=("edu",),
    ),
    Case(
        "aborted-bar",
        "aborted: the new QEMU cannot map the registers of a device",
        "abort",
        ("bar-mapped:fail",),
        on=OLD,
        devices=_TWO,
    ),
    Case(
        "memlock",
        "upgrades of a VM whose limit of locked memory was lowered",
        "memlock",
        on=OLD,
        devices=("nvme",),
        way=LIMITED,
        backend="legacy",
    ),
    Case(
        "memlock-user",
        "upgrades of a VM whose limit was lowered, with an iommufd that counts for the user",
        "memlock_user",
        on=OLD,
        devices=("nvme",),
        way=LIMITED,
        backend="iommufd",
    ),
    Case(
        "memlock-process",
        "the same with an iommufd that counts for the process",
        "memlock_process",
        on=OLD,
        devices=("nvme",),
        way=OF_PROCESS,
        backend="iommufd",
    ),
    Case(
        "by-descriptor",
        "upgrade of a VM that was given its device as a descriptor, whose first KVM must go",
        "by_descriptor",
        on=OLD,
        devices=("nvme",),
        way=BY_DESCRIPTOR,
        backend="iommufd",
    ),
)
# On a host with an older kernel: before 6.5 it adds no vectors of MSI-X to those that a device has, all are enabled anew.
OLDER_KERNEL = "older-kernel"
OLDER_KERNEL_CASES = (
    Case("upgrade", "upgrade", "vfork", on=OLD),
    _aborted("loaded:kill", "is killed in the pause"),
    Case("back", "back to the old build", "vfork", on=NEW, to=OLD),
    Case(
        "late-vectors",
        "upgrade before the guest uses more than the first interrupt of a device",
        "late",
        on=OLD,
        devices=("nvme", "e1000e"),
        late=("e1000e",),
    ),
    Case("after-late", "back after that", "vfork", on=NEW, to=OLD, devices=("nvme", "e1000e"), late=("e1000e",)),
)
# What a QEMU has pinned that may lock no more than its limit is counted by the kernel, whatever it has done it with.
SOAK = (Case("soak", "upgrades back and forth, one after the other", "soak", on=OLD, way=LIMITED),)
CASES = {"vfork": VFORK, "events": EVENTS, "stock": STOCK_CASES, "soak": SOAK, OLDER_KERNEL: OLDER_KERNEL_CASES}
