# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a KVM artifact: a core and the kvm_thin it was built with. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

SCHEMA = 1
KIND = "kvm"
BUILD_ID = re.compile(r"kvm-(?P<version>\d+(\.\d+)+)-(?P<name>[0-9a-f]{16})")
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class KmodManifest:
    """One build.

    ``name``: what the core is called by kvm_thin; its node is ``/dev/kvm-<name>``, its module ``kvm_core_<name>``.
    ``thin_abi``: the ABI that the core needs. ``thin_build``: the kvm_thin in ``files``, which need not be the one that runs.
    ``release`` and ``vermagic``: the kernel it loads into. ``version``: of the kernel source that the core is made of.
    """

    schema: int
    kind: str
    build_id: str
    name: str
    version: str
    series: str
    release: str
    vermagic: str
    thin_abi: int
    thin_build: str
    source: dict[str, str]
    patches: list[dict[str, str]]
    overlay: list[dict[str, str]]
    thin: list[dict[str, str]]
    compiler: str
    architecture: str
    created: str
    files: dict[str, str]

    @property
    def module(self) -> str:
        """Name of the core's module."""
        return f"kvm_core_{self.name}"

    @property
    def node(self) -> str:
        """Device node of the core."""
        return f"/dev/kvm-{self.name}"

    def write(self, directory: Path) -> None:
        """Write the manifest of the artifact that lies in ``directory``."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
        (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> KmodManifest:
        """Return the manifest of an unpacked artifact. Raises ``LiveUpgradeError`` telling what is wrong with it."""
        try:
            data = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise LiveUpgradeError(f"{directory} has no readable {MANIFEST_NAME}: {exc}") from exc
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> KmodManifest:
        """Return the manifest that ``data`` holds. Raises ``LiveUpgradeError``."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("kind") != KIND:
            raise LiveUpgradeError(f"this is no manifest of a KVM artifact of schema {SCHEMA}")
        names = {item.name for item in dataclasses.fields(cls)}
        if missing := sorted(names - set(data)):
            raise LiveUpgradeError(f"the manifest does not tell {', '.join(missing)}")
        manifest = cls(**{name: data[name] for name in names})
        if BUILD_ID.fullmatch(manifest.build_id) is None:
            raise LiveUpgradeError(f"{manifest.build_id!r} is not the id of a KVM build")
        return manifest
