#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_build
short_description: Build KVM as kvm_thin and a core that loads beside others
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Compiles C(kvm_thin.ko) and C(kvm_core_<name>.ko) for one kernel, out of the distribution's kernel source with the patches
    and added files of this collection, and packs them with manifest and SBOM into C(kvm-<name>-<thin build>.tar.gz).
  - The name is a digest over all inputs (source, patches, headers, compiler, certificate of the signer). The same inputs
    give the same name, and an artifact that exists is verified and left alone.
  - A warning of the compiler, an exported symbol or missing return thunks fail the build.
options:
  series:
    description:
      - The kernel series that the source and O(patches) are of, as noted in the manifest. It has to be that of O(release),
        which it is by default.
    type: str
  release:
    description:
      - The kernel that is to load the modules (C(uname -r)), whose headers are in O(root). By default the one that runs.
    type: str
  source:
    description:
      - Tarball of the kernel source. By default what the package C(linux-source-<series>) installs in O(root).
    type: path
  patches:
    description:
      - Directory with patches and a C(series) file that lists them in order.
    type: path
    required: true
  fixes:
    description:
      - Another such directory, whose patches are applied after those. What this core has beyond its source.
    type: path
  overlay:
    description:
      - Directory with files that are added to the source before it is patched, and a file C(files) that lists them.
    type: path
    required: true
  thin:
    description:
      - Directory with the source of kvm_thin.
    type: path
    required: true
  label:
    description:
      - Any text. It makes another build out of the same inputs.
    type: str
    default: ""
  debug:
    description:
      - Whether kvm_thin compares what it remembers of the hardware with the hardware, on every use.
    type: bool
    default: false
  sign_key:
    description:
      - Private key, in PEM and without passphrase, to sign both modules with. Nobody but its owner may have access to the file.
      - It is read by the kernel's C(sign-file) alone. Neither it nor anything derived from it but the signatures is kept.
    type: path
  sign_certificate:
    description:
      - Certificate of O(sign_key), which the kernel that loads the modules has to trust.
    type: path
  sign_hash:
    description:
      - The digest that is signed.
    type: str
    choices:
      - sha256
      - sha384
      - sha512
    default: sha256
  root:
    description:
      - Root of a Debian with headers, source and compiler, to build in by C(chroot), which takes root. O(cache), and the files of
        O(sign_key) and O(sign_certificate), have to lie in it.
    type: path
    default: /
  dest:
    description:
      - Directory that receives the artifact and its C(.sha256).
    type: path
    default: ~/.cache/vmm-live-upgrade/artifacts
  cache:
    description:
      - Directory for unfinished builds and the progress log.
    type: path
    default: ~/.cache/vmm-live-upgrade/build
  jobs:
    description:
      - Compilers at once. V(0) is one for each CPU.
    type: int
    default: 0
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.kvm_stage
"""

EXAMPLES = r"""
- name: Build KVM for the kernel that runs
  vmm.live_upgrade.kvm_build:
    patches: /srv/kmod/patches/6.12
    overlay: /srv/kmod/overlay
    thin: /srv/kmod/kvm_thin

- name: Build it in a root of Debian 12, for its kernel
  vmm.live_upgrade.kvm_build:
    release: 6.1.0-56-amd64
    patches: /srv/kmod/patches/6.1
    overlay: /srv/kmod/overlay
    thin: /srv/kmod/kvm_thin
    root: /srv/bookworm
    cache: /srv/bookworm/var/tmp/kmod

- name: Build it for hosts that load signed modules only
  vmm.live_upgrade.kvm_build:
    release: 6.12.118+deb13-amd64
    patches: /srv/kmod/patches/6.12
    overlay: /srv/kmod/overlay
    thin: /srv/kmod/kvm_thin
    sign_key: /etc/keys/modules.pem
    sign_certificate: /etc/keys/modules.crt
"""

RETURN = r"""
build_id:
  description: Id of the build, C(kvm-<version>-<name>).
  returned: always
  type: str
name:
  description: Name of the core.
  returned: always
  type: str
artifact:
  description: Path of the artifact. In check mode where it would be.
  returned: always
  type: str
release:
  description: The kernel that loads it.
  returned: always
  type: str
thin_abi:
  description: The ABI of kvm_thin that the core needs.
  returned: always
  type: int
thin_build:
  description: Id of the kvm_thin in the artifact.
  returned: always
  type: str
signed:
  description: Whether the modules are signed.
  returned: always
  type: bool
log:
  description: Path of the progress log, a line for each thing that happened.
  returned: always
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.build import KmodBuilder, KmodSpec, series_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.signing import Signing


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "series": {"type": "str"},
            "release": {"type": "str"},
            "source": {"type": "path"},
            "patches": {"type": "path", "required": True},
            "fixes": {"type": "path"},
            "overlay": {"type": "path", "required": True},
            "thin": {"type": "path", "required": True},
            "label": {"type": "str", "default": ""},
            "debug": {"type": "bool", "default": False},
            # a path, not the key
            "sign_key": {"type": "path", "no_log": False},
            "sign_certificate": {"type": "path"},
            "sign_hash": {"type": "str", "choices": ["sha256", "sha384", "sha512"], "default": "sha256"},
            "root": {"type": "path", "default": "/"},
            "dest": {"type": "path", "default": "~/.cache/vmm-live-upgrade/artifacts"},
            "cache": {"type": "path", "default": "~/.cache/vmm-live-upgrade/build"},
            "jobs": {"type": "int", "default": 0},
        },
        required_together=[("sign_key", "sign_certificate")],
        supports_check_mode=True,
    )
    try:
        module.exit_json(failed=False, **_build(module))
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=f"KVM was not built: {exc}")


def _build(module: AnsibleModule) -> dict[str, object]:
    root, cache = Path(module.params["root"]), Path(module.params["cache"])
    spec = _spec(module, root)
    progress = cache / "logs" / f"progress-kvm-{spec.release}.log"
    progress.parent.mkdir(parents=True, exist_ok=True)
    if root != Path("/") and root not in cache.parents:
        raise LiveUpgradeError(f"the cache {cache} does not lie in {root}, where modules are compiled")
    with open(progress, "w", encoding="utf-8", buffering=1) as stream:
        builder = KmodBuilder(
            root, cache / "kmod", Path(module.params["dest"]), lambda line: stream.writelines((line, "\n"))
        )
        plan = builder.plan(spec)
        changed = not builder.finished(plan)
        if changed and not module.check_mode:
            builder.build(plan)
    return {
        "changed": changed,
        "build_id": builder.build_id(plan),
        "name": plan.name,
        "artifact": str(builder.artifact(plan)),
        "release": spec.release,
        "thin_abi": plan.thin_abi,
        "thin_build": plan.thin_build,
        "signed": spec.signing is not None,
        "log": str(progress),
    }


def _spec(module: AnsibleModule, root: Path) -> KmodSpec:
    params = module.params
    release = params["release"] or os.uname().release
    series = params["series"] or series_of(release)
    source = params["source"] or root / "usr" / "src" / f"linux-source-{series}.tar.xz"
    signing = None
    if params["sign_key"]:
        signing = Signing(Path(params["sign_key"]), Path(params["sign_certificate"]), params["sign_hash"])
    return KmodSpec(
        series=series,
        release=release,
        source=Path(source),
        patches=Path(params["patches"]),
        overlay=Path(params["overlay"]),
        thin=Path(params["thin"]),
        jobs=params["jobs"] or len(os.sched_getaffinity(0)),
        label=params["label"],
        debug=params["debug"],
        fixes=Path(params["fixes"]) if params["fixes"] else None,
        signing=signing,
    )


if __name__ == "__main__":
    main()
