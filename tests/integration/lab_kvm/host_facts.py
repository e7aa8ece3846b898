# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab host says of its KVM, without any of our modules, and how it is booted anew."""

from __future__ import annotations

import contextlib
import subprocess
import time

from ansible_collections.vmm.live_upgrade.tests.integration.lab.kvm_cores import name_of
from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import STATE_DIR, LabHosts
from vmmlab.ssh import banner

UNIT = "vmm-kvm-cores.service"
BOOT_S = 600.0
_TRY_S = 15.0


def reboot(lab: LabHosts, host: str) -> None:
    """Have a host reboot, and return when its VMs count and write again."""
    before = boot_id(lab, host)
    lab.sh(host, "systemctl reboot", check=False)
    wait_for_boot(lab, host, before)


def wait_for_boot(lab: LabHosts, host: str, before: str) -> None:
    """Return when the VMs of a host count that is up and was booted after ``before``."""
    access = lab[host].access
    end_s = time.monotonic() + BOOT_S
    now = before
    while now == before:
        assert time.monotonic() < end_s, f"{host} was not booted again:\n{lab[host].console_tail(12)}"
        access.close()  # it may lead to the boot that ends
        if banner(access.port, _TRY_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                now = access.run("cat", "/proc/sys/kernel/random/boot_id").stdout.strip() or before
    lab.before = lab.look(wait_s=BOOT_S)


def boot_id(lab: LabHosts, host: str) -> str:
    """What tells boots apart."""
    return lab.sh(host, "cat /proc/sys/kernel/random/boot_id")


def kvm_modules(lab: LabHosts, host: str) -> set[str]:
    """The modules of KVM that are loaded."""
    return set(lab.sh(host, "lsmod | sed -n 's/^\\(kvm[^ ]*\\).*/\\1/p'").split())


def node_owner(lab: LabHosts, host: str, node: str) -> str:
    """Group and mode of a device node."""
    return lab.sh(host, f"stat -c '%F %G %a' {node}")


def default_core(lab: LabHosts, host: str) -> str:
    """Name of the core that ``/dev/kvm`` opens."""
    return lab.sh(host, "sed -n 's/ .* default=1$//p' /sys/module/kvm_thin/parameters/cores")


def of_unit(lab: LabHosts, host: str, unit: str, prop: str) -> str:
    """A property of a unit."""
    return lab.sh(host, f"systemctl show --value -p {prop} {unit}")


def said_at_boot(lab: LabHosts, host: str) -> str:
    """What the unit that loads cores said in this boot."""
    return lab.sh(host, f"journalctl -b -o cat -u {UNIT}")


def core_file(lab: LabHosts, host: str, build_id: str) -> str:
    """Path of the core of a staged build."""
    release = lab.sh(host, "uname -r")
    return f"{STATE_DIR}/kvm/{release}/{build_id}/kvm_core_{name_of(build_id)}.ko"
