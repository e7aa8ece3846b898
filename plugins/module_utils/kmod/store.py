# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The KVM builds staged on a host for one kernel: ``kvm/<release>/<build_id>`` below the state directory.

A build appears there whole and verified, by one rename, or not at all. PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.archive import (
    StoreError,
    delete,
    locked,
    unpack,
    verified_manifest,
    verify_file,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import ManifestError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import (
    BUILD_ID,
    THIN_FILE,
    KmodManifest,
    name_of,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import is_signed, module_information


@dataclass(frozen=True)
class StagedKvm:
    """A KVM build on this host. ``path`` is the folder with its modules."""

    path: Path
    manifest: KmodManifest

    @property
    def thin(self) -> Path:
        """File of its kvm_thin."""
        return self.path / THIN_FILE

    @property
    def core(self) -> Path:
        """File of its core."""
        return self.path / self.manifest.core_file

    def verify(self) -> None:
        """Raise ``StoreError`` when a module has been changed since it was staged."""
        for path in (self.thin, self.core):
            verify_file(self.path, self.manifest, path.name)


class KvmStore:
    """The KVM builds for the kernel ``release``."""

    def __init__(self, state_dir: Path, release: str) -> None:
        """``state_dir`` need not exist; it is made when something is staged."""
        self.folder = state_dir / "kvm" / release

    def get(self, build_id: str) -> StagedKvm:
        """Return a staged build. Raises ``LiveUpgradeError`` for what is not a build id or not staged here."""
        name_of(build_id)
        path = self.folder / build_id
        if not path.is_dir():
            staged = ", ".join(build.manifest.build_id for build in self.list()) or "none"
            raise StoreError(
                f"build {build_id} is not staged on {os.uname().nodename} for kernel {self.folder.name}; staged: {staged}. "
                "Nothing was touched; stage it first (kvm_stage)"
            )
        return StagedKvm(path, KmodManifest.load(path))

    def list(self) -> Sequence[StagedKvm]:
        """Return the staged builds, the one staged last at the end. One with an unreadable manifest is passed over."""
        if not self.folder.is_dir():
            return []
        builds = []
        paths = [path for path in self.folder.iterdir() if path.is_dir() and BUILD_ID.fullmatch(path.name)]
        for path in sorted(paths, key=lambda build: (build.stat().st_mtime_ns, build.name)):
            with contextlib.suppress(ManifestError):
                builds.append(StagedKvm(path, KmodManifest.load(path)))
        return builds

    def named(self, name: str) -> StagedKvm | None:
        """Return the staged build of the core ``name``."""
        return next((build for build in self.list() if build.manifest.name == name), None)

    def has(self, manifest: KmodManifest) -> bool:
        """Tell whether the build of an artifact is staged. Raises ``LiveUpgradeError`` when it is with another kvm_thin."""
        path = self.folder / manifest.build_id
        if not path.is_dir():
            return False
        # the same core may come with another kvm_thin, which is not part of its id
        staged = KmodManifest.load(path).thin_build
        if staged != manifest.thin_build:
            raise StoreError(
                f"{manifest.build_id} is staged with kvm_thin {staged}, the artifact has {manifest.thin_build}: "
                "remove the staged one first (state=absent), or keep it. Nothing was changed"
            )
        return True

    def stage(self, artifact: Path, manifest: KmodManifest) -> StagedKvm:
        """Put the build of a verified artifact into the store; one that is there already is left alone.

        Raises ``LiveUpgradeError``; nothing is left behind then.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        with locked(self.folder):
            target = self.folder / manifest.build_id
            if not self.has(manifest):
                unpack(artifact, manifest, target, lambda folder: _check_modules(folder, manifest))
            return StagedKvm(target, manifest)

    def remove(self, build_id: str) -> None:
        """Remove a build that is there. Whether it may go is for the caller to know."""
        with locked(self.folder):
            delete(self.folder / build_id)


def verify_kvm_artifact(artifact: Path, sha256: str | None, allowed_signers: Path | None) -> KmodManifest:
    """Check digest, signature, members, manifest and architecture of an artifact. Raises ``LiveUpgradeError``."""
    return verified_manifest(KmodManifest, artifact, sha256, allowed_signers)


def _check_modules(folder: Path, manifest: KmodManifest) -> None:
    """Raise ``StoreError`` when the modules are not what the manifest says of them."""
    versions = {THIN_FILE: manifest.thin_build, manifest.core_file: manifest.name}
    for file, version in versions.items():
        told = module_information(folder / file)
        claims = {
            "vermagic": (told.get("vermagic", "").strip(), manifest.vermagic),
            "version": (told.get("version", ""), version),
            "kvm_thin_abi": (told.get("kvm_thin_abi", ""), str(manifest.thin_abi)),
            # kvm_thin is of no release, and cores built earlier do not name theirs
            "vmm_source": (told.get("vmm_source", manifest.version), manifest.version),
            "signature": (is_signed(folder / file), bool(manifest.signed_by)),
        }
        for what, (is_, claimed) in claims.items():
            if is_ != claimed:
                raise StoreError(
                    f"{manifest.build_id} is refused: {what} of {file} is {is_!r}, the manifest says {claimed!r}"
                )
