#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Find the running VMs of a host and what each runs
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Finds every running QEMU of a host without configuration, from C(/proc), and asks each through QMP.
  - Tells the build each VM runs (also when the binary has been deleted), its machine type, memory, disks, network back ends,
    passthrough devices, locked memory and what was plugged in since its start, and by which mechanisms it can be moved to another
    build.
  - Tells the VFIO devices of the host, who uses them, and what its kernel can do with them when a VM is upgraded.
  - A VM that does not answer costs its own facts, within seconds, and nobody else's.
options:
  vms:
    description:
      - Names of the VMs to tell about. An unknown name is an error. Empty means every VM of the host.
    type: list
    elements: str
    default: []
  state_dir:
    description:
      - Where builds live on the host. Only read, for RV(default_build_id).
    type: path
    default: /var/lib/vmm-live-upgrade
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
notes:
  - Needs to run as root.
seealso:
  - module: vmm.live_upgrade.vm_preflight
"""

EXAMPLES = r"""
- name: Find all VMs
  vmm.live_upgrade.vm_info:
  register: found

- name: Show which build each runs
  ansible.builtin.debug:
    msg: "{{ found.vms | items2dict(key_name='name', value_name='build_id') }}"
"""

RETURN = r"""
default_build_id:
  description: The build that newly started VMs run, or null.
  returned: always
  type: str
vfio:
  description: What the host has for VFIO.
  returned: always
  type: dict
  contains:
    iommu:
      description: Whether there are IOMMU groups, which takes an IOMMU that is switched on.
      type: bool
    kernel:
      description:
        - What the kernel can do with DMA mappings when a VM changes its process. Null where it has no such interface, as when the
          module is not loaded, which is not done for the question.
      type: dict
      contains:
        legacy_change_process:
          description:
            - Whether mappings of legacy containers can be given to another process (C(VFIO_UPDATE_VADDR), Linux 5.12).
            - False also where C(/dev/vfio/vfio) is served by iommufd.
          type: bool
        iommufd_change_process:
          description: Whether those of iommufd can (C(IOMMU_IOAS_CHANGE_PROCESS), Linux 6.13).
          type: bool
        iommufd_map_file:
          description: Whether they can be made from files (C(IOMMU_IOAS_MAP_FILE)), which that asks for.
          type: bool
    devices:
      description: Devices that a VFIO driver has, mediated devices among them.
      type: list
      elements: dict
      contains:
        address:
          description: The PCI address, or the UUID of a mediated device.
          type: str
        driver:
          description: The driver, C(vfio-pci) or that of a vendor.
          type: str
        group:
          description: Its IOMMU group, or null.
          type: str
        vendor_id:
          description: The PCI id of the vendor, as C(0x8086). Null for a mediated device.
          type: str
        device_id:
          description: The PCI id of the device. Null for a mediated device.
          type: str
        users:
          description:
            - Processes that have it open, each with C(pid) and C(vm) (null when it is no VM).
            - With a legacy container a group is opened as a whole, so that its users are those of each device in it.
          type: list
          elements: dict
    groups:
      description: IOMMU groups in which a VFIO driver has a device.
      type: list
      elements: dict
      contains:
        number:
          description: The group.
          type: str
        members:
          description: All devices in it, each with C(address) and C(driver) (null when it has none).
          type: list
          elements: dict
vms:
  description: One entry per VM, by name.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name given to QEMU, else the instance of the systemd unit, else C(pid-<number>).
      type: str
    pid:
      description: The process.
      type: int
    start_time_ticks:
      description: When the process started, in clock ticks since boot. With the pid it names one process for ever.
      type: int
    age_s:
      description: For how many seconds the process runs. A VM that was moved has run its build for so long.
      type: int
    exe:
      description: The binary it was started from.
      type: str
    exe_deleted:
      description: Whether that binary has been deleted or replaced since.
      type: bool
    build_id:
      description: The build it runs, or null for a QEMU that this collection did not build.
      type: str
    gnu_build_id:
      description: The linker's build id of the binary, or null.
      type: str
    version:
      description: The version of QEMU, or null when it is foreign and cannot be asked.
      type: str
    argv:
      description: The command line.
      type: list
      elements: str
    unit:
      description: The systemd unit, or null.
      type: str
    cgroup:
      description: The control group.
      type: str
    uid:
      description: The effective user id of the process.
      type: int
    gid:
      description: The effective group id of the process.
      type: int
    stopped:
      description: Whether the process is stopped by a signal.
      type: bool
    security_label:
      description: The label of the security module, or null.
      type: str
    qmp_endpoints:
      description: QMP monitors on UNIX sockets, each with C(path), C(state) (C(ok), C(busy), C(dead)) and C(detail).
      type: list
      elements: dict
    other_monitors:
      description: Monitors that cannot be used, in words.
      type: list
      elements: str
    status:
      description: The run state, or null when QEMU cannot be asked.
      type: str
    migration_status:
      description: The state of the last migration, or null when QEMU cannot be asked.
      type: str
    migration_blockers:
      description: What QEMU names as obstacles to a migration.
      type: list
      elements: str
    cpr_vfork:
      description: Whether the QEMU has the mode C(cpr-vfork).
      type: bool
    vfork_blockers:
      description: What that mode names as obstacles. Null for a QEMU that does not hand over devices of the host by it.
      type: list
      elements: str
    machine_type:
      description: The machine type. An alias such as V(q35) only when QEMU cannot be asked.
      type: str
    accelerator:
      description: V(kvm), V(tcg) or another.
      type: str
    kvm_device:
      description:
        - The KVM node that the process has open, C(/dev/kvm) or that of a core, C(/dev/kvm-NAME). Null for a VM without KVM.
      type: str
    ram_blocks:
      description: Blocks of memory, each with C(id), C(size_bytes), C(shared), C(backing) and C(backend).
      type: list
      elements: dict
    disks:
      description: Drives with a medium, each with C(id), C(node), C(format), C(read_only) and C(files).
      type: list
      elements: dict
    nics:
      description: Network back ends, each with C(id), C(backend), C(model), C(mac), C(interface) and C(vhost).
      type: list
      elements: dict
    passthrough:
      description: Devices of the host in the guest, each with C(id), C(driver), C(host) and C(iommufd).
      type: list
      elements: dict
    vfio:
      description:
        - By what the process has VFIO devices open, null when it has none. RV(vfio.devices) tells which they are.
      type: dict
      contains:
        groups:
          description: IOMMU groups that it has in legacy containers.
          type: list
          elements: str
        cdevs:
          description: Character devices that it has with iommufd, as C(vfio0).
          type: list
          elements: str
        mappings_can_move:
          description:
            - Whether the kernel can give the DMA mappings to another process, asked of the very containers that the VM has.
            - Null when they give no answer.
          type: bool
        counted_for_user:
          description:
            - Whether what iommufd has pinned counts for the user of the process, and so for both processes at a hand-over.
            - Null when it has no iommufd, or that gives no answer.
          type: bool
    locked_memory:
      description: What the process has locked, and what a process that takes its place may lock. Null when it cannot be read.
      type: dict
      contains:
        locked_kib:
          description: Locked memory (C(VmLck)). Pages that a legacy container has pinned count here.
          type: int
        pinned_kib:
          description:
            - Pinned memory (C(VmPin)). Pages that iommufd has pinned count here.
            - C(counted_for_user) of C(vfio) tells against whose limit.
          type: int
        limit_kib:
          description: The soft limit of locked memory (C(RLIMIT_MEMLOCK)), null for none.
          type: int
        hard_limit_kib:
          description: The hard limit, to which a process may raise its own, null for none.
          type: int
        exempt:
          description: Whether the new process will have C(CAP_IPC_LOCK), to which the limit does not apply.
          type: bool
    hotplugged:
      description: What was added since the start, each with C(kind), C(id) and C(type).
      type: list
      elements: dict
    mechanisms:
      description: By mechanism, whether it is C(possible) as far as the VM is concerned, and the C(reasons).
      type: dict
    problems:
      description: What could not be learnt, and why.
      type: list
      elements: str
"""

import dataclasses
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover, select
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import age_s
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_host import look_at_host


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "vms": {"type": "list", "elements": "str", "default": []},
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
        },
        supports_check_mode=True,
    )
    try:
        running = discover()
        vms = select(running, module.params["vms"])
    except LiveUpgradeError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=False,
        default_build_id=BuildStore(Path(module.params["state_dir"])).default(),
        vfio=dataclasses.asdict(look_at_host({vm.pid: vm.name for vm in running}.get)),
        vms=[{**vm.to_dict(), "age_s": age_s(vm.start_time_ticks)} for vm in vms],
    )


if __name__ == "__main__":
    main()
