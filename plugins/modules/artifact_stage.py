#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_stage
short_description: Put a verified build beside the running one
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Verifies an artifact (digest, signature, architecture, every file), unpacks it to a directory named by its build id,
    runs it once, and makes it visible by one rename. No VM is touched.
  - An artifact that fails any check is refused and leaves nothing behind.
options:
  state:
    description:
      - V(present) stages O(artifact). V(absent) removes O(build_id), unless a process runs it or it is the default.
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
      - The build. With V(state=present) the artifact must be this build.
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
  keep:
    description:
      - How many builds to keep besides the default and those in use. Older ones are removed. V(0) keeps all.
    type: int
    default: 0
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
  - module: vmm.live_upgrade.artifact_default
  - module: vmm.live_upgrade.qemu_build
"""

EXAMPLES = r"""
- name: Stage a build, signed by somebody we trust
  vmm.live_upgrade.artifact_stage:
    artifact: /var/tmp/qemu-11.1.1-0123456789abcdef.tar.gz
    allowed_signers: /etc/vmm/allowed_signers
    keep: 3

- name: Remove a build nobody runs
  vmm.live_upgrade.artifact_stage:
    state: absent
    build_id: qemu-10.2.2-0123456789abcdef
"""

RETURN = r"""
build_id:
  description: The build.
  returned: always
  type: str
path:
  description: Where it is, or would be, staged.
  returned: when O(state=present)
  type: str
staged:
  description: The builds staged on the host afterwards, oldest first.
  returned: always
  type: list
  elements: str
pruned:
  description: Builds that were removed because of O(keep).
  returned: always
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore, verify_artifact
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "artifact": {"type": "path"},
            "build_id": {"type": "str"},
            "sha256": {"type": "str"},
            "allowed_signers": {"type": "path"},
            "keep": {"type": "int", "default": 0},
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
        },
        required_if=[("state", "absent", ("build_id",)), ("state", "present", ("artifact", "build_id"), True)],
        supports_check_mode=True,
    )
    store = BuildStore(Path(module.params["state_dir"]))
    before = _staged(store)
    try:
        result = _present(module, store) if module.params["state"] == "present" else _absent(module, store)
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=str(exc))
    after = result.pop("after")
    diff = {"before": "".join(f"{name}\n" for name in before), "after": "".join(f"{name}\n" for name in after)}
    module.exit_json(failed=False, changed=before != after, staged=after, diff=diff, **result)


def _present(module: AnsibleModule, store: BuildStore) -> dict[str, Any]:
    params = module.params
    before = _staged(store)
    if params["artifact"] is None or params["build_id"] in before:
        build_id, path = params["build_id"], store.get(params["build_id"]).path
    else:
        signers = Path(params["allowed_signers"]) if params["allowed_signers"] else None
        artifact = Path(params["artifact"])
        manifest = verify_artifact(artifact, params["sha256"], signers)
        build_id = manifest.build_id
        if params["build_id"] not in (None, build_id):
            raise LiveUpgradeError(f"{artifact.name} is refused: it is {build_id}, expected was {params['build_id']}")
        path = Path(params["state_dir"]) / "builds" / build_id
        if not module.check_mode:
            store.stage(artifact, params["sha256"], signers)
    pruned = list(store.prune(params["keep"], dry_run=module.check_mode)) if params["keep"] else []
    after = [name for name in [*before, *([] if build_id in before else [build_id])] if name not in pruned]
    return {"build_id": build_id, "path": str(path), "pruned": pruned, "after": after}


def _absent(module: AnsibleModule, store: BuildStore) -> dict[str, Any]:
    build_id = module.params["build_id"]
    store.check_removable(build_id)
    if not module.check_mode:
        store.remove(build_id)
    return {"build_id": build_id, "pruned": [], "after": [name for name in _staged(store) if name != build_id]}


def _staged(store: BuildStore) -> list[str]:
    return [build.manifest.build_id for build in store.list()]


if __name__ == "__main__":
    main()
