#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_stage
short_description: Put a verified build of KVM on a host, for its kernel
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Verifies an artifact of M(vmm.live_upgrade.kvm_build) (digest, signature, every file, what its modules say of themselves),
    unpacks it to a directory named by the kernel and the build id, and makes it visible by one rename. Nothing is loaded.
  - A build that this host could not load is refused and leaves nothing behind. Reasons are another kernel release or vermagic,
    modules without signature where the kernel insists on them (lockdown, C(module.sig_enforce)), and a core that needs a newer
    C(kvm_thin) than the one that is loaded.
options:
  state:
    description:
      - V(present) stages O(artifact). V(absent) removes O(build_id), unless its core or its C(kvm_thin) is loaded, or it is
        loaded at boot.
    type: str
    choices:
      - present
      - absent
    default: present
  artifact:
    description:
      - Path of the artifact on the host. May be left out with O(build_id) when that build is staged already.
    type: path
  build_id:
    description:
      - The build, C(kvm-<version>-<name>). With V(state=present) the artifact must be this build.
    type: str
  sha256:
    description:
      - Digest that the artifact must have. Without it the file C(<artifact>.sha256) has to be there.
    type: str
  allowed_signers:
    description:
      - File in the format ALLOWED SIGNERS of ssh-keygen. When given, the artifact must have a valid signature by one of
        them in C(<artifact>.sig), made in the namespace C(vmm.live_upgrade).
    type: path
  state_dir:
    description:
      - Where builds live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.kvm_build
  - module: vmm.live_upgrade.kvm_core
"""

EXAMPLES = r"""
- name: Stage a build, signed by somebody we trust
  vmm.live_upgrade.kvm_stage:
    artifact: /var/tmp/kvm-0123456789abcdef-fedcba9876543210.tar.gz
    allowed_signers: /etc/vmm/allowed_signers

- name: Remove a build that is not loaded
  vmm.live_upgrade.kvm_stage:
    state: absent
    build_id: kvm-6.12.118-0123456789abcdef
"""

RETURN = r"""
build_id:
  description: The build.
  returned: always
  type: str
path:
  description: Where it is, was, or would be staged.
  returned: always
  type: str
staged:
  description: The builds staged on the host for this kernel afterwards, oldest first.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.boot import BootChoice
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.fitness import check_fit
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import KvmState, read_state
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore, verify_kvm_artifact
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import discovery


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "artifact": {"type": "path"},
            "build_id": {"type": "str"},
            "sha256": {"type": "str"},
            "allowed_signers": {"type": "path"},
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
        },
        required_if=[("state", "absent", ("build_id",)), ("state", "present", ("artifact", "build_id"), True)],
        supports_check_mode=True,
    )
    kernel = Kernel()
    store = KvmStore(Path(module.params["state_dir"]), kernel.release)
    state = read_state(kernel, store, discovery.name_of)
    before = _staged(store)
    try:
        if module.params["state"] == "present":
            build_id = _present(module, store, kernel, state)
            after = [*before, *([] if build_id in before else [build_id])]
        else:
            build_id = _absent(module, store, state)
            after = [name for name in before if name != build_id]
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=str(exc))
    diff = {"before": "".join(f"{name}\n" for name in before), "after": "".join(f"{name}\n" for name in after)}
    module.exit_json(
        failed=False,
        changed=before != after,
        build_id=build_id,
        path=str(store.folder / build_id),
        staged=after,
        diff=diff,
    )


def _present(module: AnsibleModule, store: KvmStore, kernel: Kernel, state: KvmState) -> str:
    params = module.params
    wanted: str | None = params["build_id"]
    if wanted is not None and (params["artifact"] is None or wanted in _staged(store)):
        store.get(wanted)
        return wanted
    artifact = Path(params["artifact"])
    signers = Path(params["allowed_signers"]) if params["allowed_signers"] else None
    manifest = verify_kvm_artifact(artifact, params["sha256"], signers)
    if wanted not in (None, manifest.build_id):
        raise LiveUpgradeError(f"{artifact.name} is refused: it is {manifest.build_id}, expected was {wanted}")
    if store.has(manifest):
        return manifest.build_id
    check_fit(manifest, kernel, state)
    if not module.check_mode:
        store.stage(artifact, manifest)
    return manifest.build_id


def _absent(module: AnsibleModule, store: KvmStore, state: KvmState) -> str:
    build_id: str = module.params["build_id"]
    name = name_of(build_id)
    if build_id not in _staged(store):
        return build_id
    if state.core(name):
        raise LiveUpgradeError(f"{build_id} is loaded; unload it before it is removed (kvm_core, state=absent)")
    others = [other.manifest for other in store.list() if other.manifest.build_id != build_id]
    thin = store.get(build_id).manifest.thin_build
    if state.thin_version == thin and all(other.thin_build != thin for other in others):
        raise LiveUpgradeError(f"{build_id} has the kvm_thin that runs; it cannot be removed until that is unloaded")
    if build_id in BootChoice(store).builds():
        raise LiveUpgradeError(f"{build_id} is loaded at boot; choose another before it is removed (kvm_core)")
    if not module.check_mode:
        store.remove(build_id)
    return build_id


def _staged(store: KvmStore) -> list[str]:
    return [build.manifest.build_id for build in store.list()]


if __name__ == "__main__":
    main()
