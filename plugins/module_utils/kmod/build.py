# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a KVM artifact: kvm_thin and a core out of a kernel source, for one kernel. PRIVATE to the collection.

The build id is a digest over everything that goes in, so it is known before anything is compiled. The core's name is made
of it: module, device node, trace system and all else that exists once in a kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.pack import finished, pack
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.source import (
    Patch,
    apply_patches,
    lay_over,
    read_overlay,
    read_series,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import SCHEMA
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kbuild import Kbuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import KIND, THIN_FILE, KmodManifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import module_information
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.sbom import write_sbom
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.signing import Signing
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.tree import extract, source_version

# Part of every build id: raise it when a change here makes other modules out of the same inputs.
RECIPE = 1


@dataclass(frozen=True)
class KmodSpec:
    """What to build. ``source``: tarball of the kernel source, such as ``/usr/src/linux-source-6.12.tar.xz``.

    ``patches``: folder with a ``series`` file. ``overlay``: folder with a file ``files``. ``thin``: source of kvm_thin.
    ``fixes``: another such folder, or none: what this core has beyond its source, applied after ``patches``.
    ``label``: any text; it makes another build out of the same inputs. ``debug``: kvm_thin compares its caches with the
    hardware on every use. ``jobs``: compilers at once. ``signing``: what both modules are signed with, if they are to be.
    """

    series: str
    release: str
    source: Path
    patches: Path
    overlay: Path
    thin: Path
    jobs: int
    fixes: Path | None = None
    label: str = ""
    debug: bool = False
    signing: Signing | None = None


@dataclass(frozen=True)
class KmodPlan:
    """A build with its inputs at hand and its ids."""

    spec: KmodSpec
    name: str
    thin_build: str
    thin_abi: int
    source: dict[str, str]
    patches: list[Patch]
    overlay: list[Patch]
    thin: list[Patch]
    kernel: dict[str, str]


class KmodBuilder:
    """Builds KVM artifacts with the headers and tools in ``root``; ``work`` must lie in it. ``dest`` receives them."""

    def __init__(self, root: Path, work: Path, dest: Path, say: Callable[[str], None]) -> None:
        self._root = root
        self._work = work
        self._dest = dest
        self._say = say

    def plan(self, spec: KmodSpec) -> KmodPlan:
        """Look at all inputs and work out the ids. Raises ``LiveUpgradeError``."""
        if series_of(spec.release) != spec.series:
            raise LiveUpgradeError(
                f"the kernel {spec.release} is not one of Linux {spec.series}, and KVM of one series does not go into a kernel "
                f"of another: name the series of that kernel"
            )
        kbuild = Kbuild(self._root, spec.release)
        kbuild.check()
        # A signed module is another file: a host that insists on signatures must not get the one without by its id.
        signed = {"signed": kbuild.check_signing(spec.signing)} if spec.signing else {}
        if not spec.source.is_file():
            raise LiveUpgradeError(f"{spec.source} is not there: install linux-source-{spec.series} in {self._root}")
        kernel = kbuild.identity()
        thin = [Patch(path.name, sha256_of(path), path) for path in sorted(spec.thin.iterdir()) if path.is_file()]
        patches, overlay = read_series(spec.patches) + _fixes(spec.fixes), read_overlay(spec.overlay)
        abi = re.search(r"^#define KVM_THIN_ABI\s+(\d+)$", (spec.thin / "kvm_thin.h").read_text(), re.MULTILINE)
        if abi is None:
            raise LiveUpgradeError(f"{spec.thin}/kvm_thin.h names no KVM_THIN_ABI")
        source = {"name": spec.source.name, "sha256": sha256_of(spec.source)}
        thin_build = _digest({"recipe": RECIPE, "kernel": kernel, "thin": _ids(thin), "debug": spec.debug, **signed})
        header = next(item for item in _ids(thin) if item["name"] == "kvm_thin.h")
        inputs = {
            "recipe": RECIPE,
            "kernel": kernel,
            "source": source["sha256"],
            "patches": _ids(patches),
            "overlay": _ids(overlay),
            "interface": header,
            "label": spec.label,
            **signed,
        }
        return KmodPlan(
            spec, _digest(inputs), thin_build, int(abi[1]), source, patches, overlay, thin, kernel
        )  # fmt: skip

    def artifact(self, plan: KmodPlan) -> Path:
        """Where the artifact of ``plan`` is, or will be. A core may have been built with another kvm_thin before."""
        return self._dest / f"kvm-{plan.name}-{plan.thin_build}.tar.gz"

    def build_id(self, plan: KmodPlan) -> str:
        """The id of the build of ``plan``, which may have to be asked of the source. Raises ``LiveUpgradeError``."""
        return f"kvm-{source_version(plan.spec.source)}-{plan.name}"

    def finished(self, plan: KmodPlan) -> bool:
        """Tell whether the artifact of ``plan`` is there. Raises ``LiveUpgradeError`` for one that was changed."""
        return finished(self.artifact(plan))

    def build(self, plan: KmodPlan) -> Path:
        """Return the artifact of ``plan``, built now if it is not there. Raises ``LiveUpgradeError``.

        When another process builds the same, its result is waited for and taken.
        """
        artifact = self.artifact(plan)
        work = self._work / f"{plan.name}-{plan.thin_build}"
        work.parent.mkdir(parents=True, exist_ok=True)
        with open(work.with_name(f"{work.name}.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.finished(plan):
                self._build(plan, work, artifact)
        return artifact

    def build_thin(self, plan: KmodPlan, folder: Path) -> Path:
        """Compile kvm_thin in the new ``folder`` below ``work``, and return the module. Raises ``LiveUpgradeError``."""
        folder.mkdir(parents=True)
        lay_over(plan.thin, folder)
        self._say(f"compiling kvm_thin (ABI {plan.thin_abi}) for {plan.spec.release}")
        kbuild = Kbuild(self._root, plan.spec.release)
        debug = {"KVM_THIN_DEBUG": "1"} if plan.spec.debug else {}
        kbuild.modules(folder, plan.spec.jobs, KVM_THIN_BUILD=plan.thin_build, **debug)
        kbuild.strip(folder / THIN_FILE)
        return folder / THIN_FILE

    def _build(self, plan: KmodPlan, work: Path, artifact: Path) -> None:
        if work.exists():
            shutil.rmtree(work)
        tree, prefix = work / "src", work / "prefix"
        for folder in (tree, prefix):
            folder.mkdir(parents=True)
        began_s = time.monotonic()
        version = extract(plan.spec.source, tree)
        lay_over(plan.overlay, tree)
        apply_patches(plan.patches, tree)
        thin = self.build_thin(plan, work / "kvm_thin")
        kbuild = Kbuild(self._root, plan.spec.release)
        self._say(f"compiling core {plan.name} of Linux {version}")
        core = tree / "arch" / "x86" / "kvm"
        variables = {
            "KVM_CORE_BUILD": plan.name,
            "KVM_CORE_SOURCE": version,
            "KVM_THIN": kbuild.inside(thin.parent),
        }
        kbuild.modules(core, plan.spec.jobs, **variables)
        module = core / f"kvm_core_{plan.name}.ko"
        kbuild.strip(module)
        for built in (thin, module):
            shutil.copy(built, prefix / built.name)
            if plan.spec.signing:
                kbuild.sign(prefix / built.name, plan.spec.signing)
        self._describe(plan, version, prefix)
        pack(prefix, artifact)
        shutil.rmtree(work)
        self._say(f"artifact {artifact} after {time.monotonic() - began_s:.0f} s")

    def _describe(self, plan: KmodPlan, version: str, prefix: Path) -> None:
        manifest = KmodManifest(
            schema=SCHEMA,
            kind=KIND,
            build_id=f"kvm-{version}-{plan.name}",
            name=plan.name,
            version=version,
            series=plan.spec.series,
            release=plan.spec.release,
            vermagic=module_information(prefix / f"kvm_core_{plan.name}.ko")["vermagic"].strip(),
            thin_abi=plan.thin_abi,
            thin_build=plan.thin_build,
            source=plan.source,
            patches=_ids(plan.patches),
            overlay=_ids(plan.overlay),
            thin=_ids(plan.thin),
            compiler=plan.kernel["compiler"],
            architecture=platform.machine(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            files={},
            signed_by=plan.spec.signing.certificate_sha256 if plan.spec.signing else "",
        )
        _check_core(prefix / manifest.core_file)
        write_sbom(prefix / "sbom.cdx.json", manifest, prefix)
        files = {path.name: sha256_of(path) for path in sorted(prefix.iterdir())}
        KmodManifest.from_dict({**manifest.to_dict(), "files": files}).write(prefix)


def series_of(release: str) -> str:
    """Return the series that the kernel ``release`` is of, such as ``6.12``. Raises ``LiveUpgradeError``."""
    found = re.match(r"\d+\.\d+(?!\d)", release)
    if found is None:
        raise LiveUpgradeError(
            f"{release!r} is no release of a kernel: give one as uname -r tells it, such as 6.1.0-56-amd64"
        )
    return found[0]


def _check_core(module: Path) -> None:
    """Raise ``LiveUpgradeError`` for a core that exports symbols or has lost the kernel's return thunks."""
    data = module.read_bytes()
    if b"__ksymtab" in data:
        raise LiveUpgradeError(f"{module.name} exports symbols: two such cores cannot be loaded")
    if b"__x86_return_thunk" not in data:
        raise LiveUpgradeError(f"{module.name} was compiled without return thunks: it would open what they close")


def _fixes(folder: Path | None) -> list[Patch]:
    """The patches of ``folder`` under names that tell them from those that every core has."""
    if folder is None:
        return []
    found = [replace(patch, name=f"fixes/{patch.name}") for patch in read_series(folder)]
    if not found:
        raise LiveUpgradeError(f"{folder} names no fix in a file series: give the folder of fixes, or none")
    return found


def _ids(files: list[Patch]) -> list[dict[str, str]]:
    return [{"name": file.name, "sha256": file.sha256} for file in files]


def _digest(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
