# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The key that modules are signed with. Nothing of it is read here, logged or kept. PRIVATE to the collection."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


@dataclass(frozen=True)
class Signing:
    """A private key and its certificate, both as the kernel's ``sign-file`` takes them, and the digest to sign."""

    key: Path
    certificate: Path
    hash: str = "sha256"

    @property
    def certificate_sha256(self) -> str:
        """What the signer is known by."""
        return sha256_of(self.certificate)

    def check(self) -> None:
        """Raise ``LiveUpgradeError`` when a file is missing, or others than its owner can read the key."""
        for path, what in ((self.key, "key"), (self.certificate, "certificate")):
            if not path.is_file():
                raise LiveUpgradeError(f"modules cannot be signed: there is no {what} {path}")
        status = os.stat(self.key)
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (0, os.geteuid()):
            raise LiveUpgradeError(
                f"modules are not signed with {self.key}: others can read or change it; "
                "make it yours with mode 0600, and a new key if it has been like this for long"
            )
