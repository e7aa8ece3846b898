# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a KVM artifact: a core and the kvm_thin it was built with. PRIVATE to the collection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import (
    ManifestError,
    TypedManifest,
)

KIND = "kvm"
BUILD_ID = re.compile(r"kvm-(?P<version>\d+(\.\d+)+)-(?P<name>[0-9a-f]{16})")
THIN_FILE = "kvm_thin.ko"


@dataclass(frozen=True)
class KmodManifest(TypedManifest):
    """One build.

    ``name``: what the core is called by kvm_thin; its node is ``/dev/kvm-<name>``, its module ``kvm_core_<name>``.
    ``thin_abi``: the ABI that the core needs. ``thin_build``: the kvm_thin in ``files``, which need not be the one that runs.
    ``release`` and ``vermagic``: the kernel it loads into. ``version``: of the kernel source that the core is made of.
    ``signed_by``: SHA-256 of the certificate that checks the modules' signatures, empty for modules without.
    """

    KIND: ClassVar[str] = KIND
    BUILD_ID: ClassVar[re.Pattern[str]] = BUILD_ID

    name: str
    release: str
    vermagic: str
    thin_abi: int
    thin_build: str
    overlay: list[dict[str, str]]
    thin: list[dict[str, str]]
    signed_by: str = ""

    @property
    def module(self) -> str:
        """Name of the core's module."""
        return f"kvm_core_{self.name}"

    @property
    def core_file(self) -> str:
        """File of the core in the artifact."""
        return f"{self.module}.ko"

    @property
    def node(self) -> str:
        """Device node of the core."""
        return f"/dev/kvm-{self.name}"

    def _check(self) -> None:
        super()._check()
        if self.build_id != f"kvm-{self.version}-{self.name}":
            raise ManifestError(f"build id {self.build_id} is not that of core {self.name} of Linux {self.version}")
        for file in (THIN_FILE, self.core_file):
            if file not in self.files:
                raise ManifestError(f"the manifest does not list {file}")


def name_of(build_id: str) -> str:
    """Return the name of the core of a build. Raises ``ManifestError`` for what is not the id of one."""
    match = BUILD_ID.fullmatch(build_id)
    if match is None:
        raise ManifestError(f"{build_id!r} is not the id of a KVM build (kvm-<version>-<16 hex digits>)")
    return match["name"]
