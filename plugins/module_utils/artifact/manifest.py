# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of an artifact: what a build is made of and what it can do. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

SCHEMA = 1
BUILD_ID = re.compile(r"qemu-\d+(\.\d+)+-[0-9a-f]{16}")
MANIFEST_NAME = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(LiveUpgradeError):
    """A manifest is missing, unreadable, or does not say what it has to."""


@dataclass(frozen=True)
class Manifest:
    """One build. ``files``: path in the artifact → SHA-256, of all files but the manifest itself.

    ``capabilities``: what the binary can do beyond stock QEMU, such as ``cpr-vfork``. ``overlay``: files that were laid over
    the source before it was patched, each with ``name`` and ``sha256``, as ``patches``.
    """

    schema: int
    kind: str
    build_id: str
    version: str
    series: str
    source: dict[str, str]
    patches: list[dict[str, str]]
    configure: list[str]
    compiler: str
    architecture: str
    created: str
    machine_types: list[str]
    files: dict[str, str]
    gnu_build_id: str
    libraries: list[str]
    overlay: list[dict[str, str]] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """Return the manifest that ``data`` holds. Raises ``ManifestError`` saying what is wrong with it."""
        if not isinstance(data, dict):
            raise ManifestError("the manifest is not a JSON object")
        if data.get("schema") != SCHEMA:
            raise ManifestError(f"the manifest has schema {data.get('schema')!r}; this collection knows {SCHEMA}")
        for item in dataclasses.fields(cls):
            if item.name not in data and item.default_factory is not dataclasses.MISSING:
                continue  # came later than the first artifacts
            if item.name not in data:
                raise ManifestError(f"the manifest does not tell its {item.name}")
            expected = {"int": int, "str": str}.get(str(item.type), list if str(item.type).startswith("list") else dict)
            if not isinstance(data[item.name], expected):
                raise ManifestError(f"{item.name} of the manifest is not of type {expected.__name__}")
        manifest = cls(**{item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data})
        manifest._check()
        return manifest

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Return the manifest of an unpacked artifact. Raises ``ManifestError``."""
        try:
            return cls.from_dict(json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError) as exc:
            raise ManifestError(f"{directory} has no readable {MANIFEST_NAME}: {exc}") from exc

    def _check(self) -> None:
        if self.kind != "qemu":
            raise ManifestError(f"the artifact is of kind {self.kind!r}, not qemu")
        if not BUILD_ID.fullmatch(self.build_id):
            raise ManifestError(f"{self.build_id!r} is not a build id")
        for name, digest in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not _SHA256.fullmatch(str(digest)):
                raise ManifestError(f"the manifest lists {name!r} in a way that cannot be trusted")
