# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every code a verdict can hold, and what a person can do about it. docs/preflight.md describes each.

PRIVATE to the collection.
"""

from __future__ import annotations

_START_SHARED = (
    "restart the VM with -machine memory-backend=ram0,aux-ram-share=on and "
    "-object memory-backend-memfd,id=ram0,size=SIZE,share=on; from then on it can be upgraded in place"
)
_RAISE_MEMLOCK = (
    "raise the limit of locked memory, which works while the VM runs: prlimit --pid PID --memlock=BYTES; with iommufd to "
    "twice what the VM has pinned and what the other VMs of its user have"
)
_OTHER_WAY = "shut the VM down and start it on the new build, or migrate it to a host that runs the new build"

REFUSALS = {
    # Can the VM be talked to, and is it in a state to be moved?
    "qmp-missing": "restart the VM with -qmp unix:PATH,server=on,wait=off",
    "qmp-busy": "find who holds the monitor (ss -xp), let go of it or give the VM a second -qmp, then ask again",
    "qmp-dead": "look at the process: its monitor's socket is gone or nobody serves it. A second -qmp would have helped",
    "qmp-silent": "look at the process (is it stopped, is its storage hanging?), then ask again",
    "process-stopped": "continue the process (kill -CONT PID) and find out who stopped it",
    "name-ambiguous": "find out which process is the VM (one may be left from a broken hand-over), then end or rename the other",
    "vm-not-running": "resume the VM, or leave it out: a paused VM can be upgraded once it runs",
    "migration-running": "wait for the migration to end or cancel it (migrate_cancel)",
    "half-moved": "find the other side of the migration and finish or undo that first",
    "migration-blocked": "remove the device or option that QEMU names, or " + _OTHER_WAY,
    # Can all that the process holds be handed over?
    "ram-private": _START_SHARED,
    "aux-ram-private": "restart the VM with -machine aux-ram-share=on; from then on it can be upgraded in place",
    "ram-unknown": _OTHER_WAY,
    "device-not-coverable": "unplug the device for the time of the upgrade, or " + _OTHER_WAY,
    "throttled-iothread": (
        "lift the limits for the time of the upgrade (block_set_io_throttle with zeros for a -drive; for a throttle-group "
        "object qom-set of its limits), then set them again"
    ),
    "command-not-recreatable": "remove what is named (unplug it, or restart the VM without it), or " + _OTHER_WAY,
    # Can it do what was asked for?
    "vfork-unavailable": "ask for mechanism auto or cpr-transfer, or use builds that have the mode",
    "vfork-blocked": "change what QEMU names, or ask for mechanism auto or cpr-transfer",
    "sandbox-spawn": "ask for mechanism auto or cpr-transfer, or restart the VM without -sandbox spawn=deny",
    # Can the process have a twin?
    "security-label": _OTHER_WAY + ": the new process cannot be given the old one's confinement",
    "other-namespace": "run the upgrade from inside the namespace, or " + _OTHER_WAY,
    "unit-ends-with-process": (
        "give the unit ExitType=cgroup (a drop-in, then systemctl daemon-reload; the VM keeps running), then ask again"
    ),
    "chroot": "restart the VM outside the chroot, or " + _OTHER_WAY,
    "capabilities-held": "restart the VM without extra capabilities, or " + _OTHER_WAY,
    "command-line-unreadable": "give the VM a command line of QEMU's usual form, or " + _OTHER_WAY,
    # Do the two builds fit?
    "qemu-too-old": _OTHER_WAY,
    "vfio-too-old": (
        "have both builds made by this collection, whose mode vfork loses no VM; or accept the risk (accept_vfio_risk: true), or "
        + _OTHER_WAY
    ),
    "build-too-old": "choose a build of QEMU 10.2 or newer",
    "machine-missing": "choose a build that has this machine type, or restart the VM with a newer one",
    "device-missing": "build QEMU with this device, back end or option, or restart the VM without it",
    "vmstate-forward": "choose another build, or restart the VM with a machine type that both builds describe alike",
    "vmstate-backward": "choose another build, or accept that there is no way back (require_way_back: false)",
    "vmstate-unknown": "stage the build the VM runs, or accept the risk (require_vmstate_check: false)",
    # Can it be moved to the KVM that was asked for, or open its own once more?
    "kvm-not-used": "leave kvm_build_id out for this VM: it runs without KVM",
    "kvm-build-unknown": "stage the KVM build for the kernel that runs on this host, then ask again",
    "kvm-core-not-loaded": "load the core of the KVM build on this host, then ask again",
    "kvm-core-unfit": "build KVM for the kernel that runs on this host and its kvm_thin, and stage that, then ask again",
    "kvm-node-missing": "have the core loaded and look at udev, which makes the node; a VM with a /dev of its own needs it there",
    "kvm-node-forbidden": (
        "give the node the group and mode of /dev/kvm (the udev rule 60-kvm-cores.rules does), then ask again"
    ),
    "kvm-node-denied": (
        "allow the node in the VM's control group: systemctl set-property --runtime UNIT 'DeviceAllow=NODE rw', and for "
        "libvirt cgroup_device_acl in qemu.conf before the next start"
    ),
    "kvm-offers-less": "build the new KVM so that it offers the same, or shut the VM down and start it on the new one",
    "kvm-not-comparable": "look at the node and the kernel's log, then ask again",
    # Are its disk images where the new process will look for them?
    "image-gone": "put the image back under its path (the old process still has it open), then ask again",
    "image-replaced": "put the image that the VM uses back under its path, then ask again",
    "image-unreadable": "give the VM's user access to the image again, then ask again",
    # Is there room, and can the kernel do it?
    "memory-low": "free memory on the host or move a VM away, then ask again",
    "cgroup-memory-low": "raise the memory limit (MemoryMax=) of the VM's unit for the time of the upgrade",
    "disk-low": "free space in the state directory's file system, then ask again",
    "kernel-too-old": "boot a kernel of version 5.6 or newer",
    "vfio-kernel": "boot a newer kernel, or unplug the VM's VFIO devices for the time of the upgrade",
    "memlock-low": _RAISE_MEMLOCK,
    "ptrace-forbidden": "set kernel.yama.ptrace_scope below 3 (takes a reboot), or " + _OTHER_WAY,
    # Does the new build really load this VM?
    "rehearsal-failed": "mend what the new process names, or choose another build; the VM runs on as before",
    "rehearsal-unclear": "look at the VM at once: it may not run any more. Start it anew if it does not",
    # A defect of ours must not touch a VM.
    "check-failed": "report this as a defect, with the message",
}

WARNINGS = {
    "old-build-not-staged": "stage the build that the VM runs now, if you want to be able to roll back",
    "vmstate-forward": REFUSALS["vmstate-forward"],
    "vmstate-backward": "do not count on a rollback of this VM",
    "vmstate-unknown": "stage the build the VM runs, so that the two can be compared",
    "kvm-not-compared": "nothing to do; load the core (kvm_core, state=present) to have it compared now",
    "kvm-default-changed": "give kvm_build_id to have the VM on the core that you want",
    "kvm-core-unknown": "mount debugfs, in which each core tells its VMs, to have it known",
    "image-open-elsewhere": "make sure that the other process is meant to use this image",
    "security-label": "check after the upgrade that the policy covers the new process",
    "vfio-too-old": "stay by the VM during the upgrade: if the new process dies early, the VM has to be started anew",
    "vfio-one-way": "stage a build made by this collection instead, whose mode vfork loses no VM",
    "memlock-low": _RAISE_MEMLOCK + "; or have it tried by a rehearsal",
    "cgroup-v1": "expect the new process outside the old one's version 1 control groups",
    "binary-deleted": "nothing to do: the upgrade is the cure",
    "hot-plugged": "nothing to do: the devices are in the new command line",
    "not-rehearsed": "nothing to do, unless you count on a rehearsal",
    "facts-missing": "read the message; what is not known was not checked",
}
