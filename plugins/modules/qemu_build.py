#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_build
short_description: Build QEMU from source into a relocatable artifact
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Fetches and verifies a QEMU source, applies a patch series, compiles it, and packs a relocatable prefix with firmware,
    manifest, SBOM and the migration format of every machine type into C(<build id>.tar.gz).
  - The build id is a digest over all inputs (source, patches, options, compiler, firmware, build tools), compiled into the
    binary. The same inputs give the same id, and an artifact that exists is verified and left alone.
options:
  series:
    description:
      - The QEMU series, as noted in the manifest, for example V(11.1).
    type: str
    required: true
  candidates:
    description:
      - Where the source may come from. The first that is there is taken; one that is there and has another digest is an error.
    type: list
    elements: dict
    required: true
    suboptions:
      url:
        description: Tarball, or a Debian source description (C(.dsc)) whose archives lie beside it, by http or https.
        type: str
      path:
        description: The same as a local file.
        type: path
      debian_pool:
        description: The same as a path below a Debian archive (C(pool/main/...)), from the mirrors that apt is set up with.
        type: str
      directory:
        description: An unpacked source tree. It is copied, never changed.
        type: path
      sha256:
        description: Digest of the file. Required unless it is O(candidates[].directory).
        type: str
  patches:
    description:
      - Directory with patches and a C(series) file that lists them in order.
    type: path
  overlay:
    description:
      - Directory with files that are added to the source before it is patched, and a file C(files) that lists them, one a
        line. None of them may be there already.
    type: path
  configure_options:
    description:
      - Options for QEMU's configure.
    type: list
    elements: str
    default: []
  firmware_dirs:
    description:
      - Where firmware is taken from when the source comes without it.
    type: list
    elements: path
    default:
      - /usr/share/seabios
      - /usr/share/qemu
      - /usr/lib/ipxe/qemu
  dest:
    description:
      - Directory that receives the artifact and its C(.sha256).
    type: path
    default: ~/.cache/vmm-live-upgrade/artifacts
  cache:
    description:
      - Directory for sources, build tools, logs and unfinished builds.
    type: path
    default: ~/.cache/vmm-live-upgrade/build
  jobs:
    description:
      - Compilers at once. V(0) is one for each CPU.
    type: int
    default: 0
  ccache:
    description:
      - Whether to use ccache when it is installed.
    type: bool
    default: true
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
    details: Fetches and verifies the source, which the build id depends on, and says what would be built.
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.artifact_stage
"""

EXAMPLES = r"""
- name: Build QEMU from an upstream tarball with our patches
  vmm.live_upgrade.qemu_build:
    series: "11.1"
    candidates:
      - path: /srv/sources/qemu-11.1.1.tar.xz
        sha256: "{{ qemu_sha256 }}"
    patches: /srv/patches/11.1
    configure_options:
      - --target-list=x86_64-softmmu
      - --enable-kvm
"""

RETURN = r"""
build_id:
  description: Id of the build.
  returned: always
  type: str
artifact:
  description: Path of the artifact. In check mode where it would be.
  returned: always
  type: str
source:
  description: The source that was taken.
  returned: always
  type: dict
  contains:
    name:
      description: File or directory name.
      type: str
    sha256:
      description: Its digest.
      type: str
log:
  description: Path of the progress log, a line for each thing that happened.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.build import Builder, BuildSpec, default_jobs
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.source import Candidate
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "series": {"type": "str", "required": True},
            "candidates": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "url": {"type": "str"},
                    "path": {"type": "path"},
                    "debian_pool": {"type": "str"},
                    "directory": {"type": "path"},
                    "sha256": {"type": "str"},
                },
            },
            "patches": {"type": "path"},
            "overlay": {"type": "path"},
            "configure_options": {"type": "list", "elements": "str", "default": []},
            "firmware_dirs": {
                "type": "list",
                "elements": "path",
                "default": ["/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu"],
            },
            "dest": {"type": "path", "default": "~/.cache/vmm-live-upgrade/artifacts"},
            "cache": {"type": "path", "default": "~/.cache/vmm-live-upgrade/build"},
            "jobs": {"type": "int", "default": 0},
            "ccache": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(failed=False, **_build(module))
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=f"QEMU {module.params['series']} was not built: {exc}")


def _build(module: AnsibleModule) -> dict[str, object]:
    params = module.params
    cache, dest = Path(params["cache"]), Path(params["dest"])
    progress = cache / "logs" / f"progress-{params['series']}.log"
    progress.parent.mkdir(parents=True, exist_ok=True)
    with open(progress, "w", encoding="utf-8", buffering=1) as stream:
        builder = Builder(cache, dest, lambda line: stream.writelines((line, "\n")))
        plan = builder.plan(
            BuildSpec(
                series=params["series"],
                candidates=[Candidate(**candidate) for candidate in params["candidates"]],
                configure=params["configure_options"],
                firmware_dirs=params["firmware_dirs"],
                jobs=params["jobs"] or default_jobs(),
                patches=Path(params["patches"]) if params["patches"] else None,
                overlay=Path(params["overlay"]) if params["overlay"] else None,
                ccache=params["ccache"],
            )
        )
        artifact = builder.finished(plan)
        changed = artifact is None
        if changed and not module.check_mode:
            artifact = builder.build(plan)
    return {
        "changed": changed,
        "build_id": plan.build_id,
        "artifact": str(artifact or dest / plan.artifact_name),
        "source": {"name": plan.source.name, "sha256": plan.source.sha256},
        "log": str(progress),
    }


if __name__ == "__main__":
    main()
