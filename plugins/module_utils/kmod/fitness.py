# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a KVM build cannot be loaded on this host, known before anything is touched. PRIVATE to the collection."""

from __future__ import annotations

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import KmodManifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import KvmState


def check_fit(manifest: KmodManifest, kernel: Kernel, state: KvmState) -> None:
    """Raise ``LiveUpgradeError`` when the build cannot be loaded on this host."""
    if why := refusals(manifest, kernel, state):
        raise LiveUpgradeError(f"{manifest.build_id} is refused: {'; '.join(why)}. Nothing was loaded")


def refusals(manifest: KmodManifest, kernel: Kernel, state: KvmState) -> list[str]:
    """Return every reason why the build cannot be loaded on this host, in words."""
    found = []
    # A kernel with CONFIG_MODVERSIONS does not compare the release itself.
    if manifest.release != kernel.release:
        found.append(f"it is for kernel {manifest.release}, here runs {kernel.release}: build it for that one")
    else:
        vermagic = kernel.vermagic()
        if vermagic is not None and vermagic != manifest.vermagic:
            found.append(f"its vermagic is {manifest.vermagic!r}, the kernel's modules have {vermagic!r}")
    wanted = kernel.signatures_wanted()
    if wanted and not manifest.signed_by:
        found.append(f"its modules are not signed and {wanted}: build it with sign_key")
    if state.thin_abi is not None and manifest.thin_abi > state.thin_abi:
        found.append(
            f"it needs kvm_thin ABI {manifest.thin_abi}, the one that runs serves up to {state.thin_abi} and cannot be "
            "replaced under VMs: drain the host, remove all cores, and load this build then"
        )
    return found
