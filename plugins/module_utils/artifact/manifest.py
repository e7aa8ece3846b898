# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a QEMU artifact: what a build is made of and what it can do. PRIVATE to the collection."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import TypedManifest

BUILD_ID = re.compile(r"qemu-\d+(\.\d+)+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Manifest(TypedManifest):
    """One build of QEMU.

    ``capabilities``: what the binary can do beyond stock QEMU, such as ``cpr-vfork``. ``overlay``: files that were laid over
    the source before it was patched, each with ``name`` and ``sha256``, as ``patches``.
    """

    KIND: ClassVar[str] = "qemu"
    BUILD_ID: ClassVar[re.Pattern[str]] = BUILD_ID

    configure: list[str]
    machine_types: list[str]
    gnu_build_id: str
    libraries: list[str]
    overlay: list[dict[str, str]] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
