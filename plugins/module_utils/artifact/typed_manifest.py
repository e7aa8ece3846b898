# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the manifests of all artifacts have in common: their form, and that it is checked. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_Self = TypeVar("_Self", bound="TypedManifest")


class ManifestError(LiveUpgradeError):
    """A manifest is missing, unreadable, or does not say what it has to."""


@dataclass(frozen=True)
class TypedManifest:
    """One build. ``files``: path in the artifact → SHA-256, of all files but the manifest itself.

    A subclass adds members; those with a default may be missing in a file: they came later than the first artifacts.
    Members are made of ``int``, ``str``, ``list`` and ``dict``.
    """

    KIND: ClassVar[str]
    BUILD_ID: ClassVar[re.Pattern[str]]

    schema: int
    kind: str
    build_id: str
    version: str
    series: str
    source: dict[str, str]
    patches: list[dict[str, str]]
    compiler: str
    architecture: str
    created: str
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready values."""
        return dataclasses.asdict(self)

    def write(self, directory: Path) -> None:
        """Write the manifest of the artifact that lies in ``directory``."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True)
        (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[_Self], directory: Path) -> _Self:
        """Return the manifest of an unpacked artifact. Raises ``ManifestError`` telling what is wrong with it."""
        try:
            data = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ManifestError(f"{directory} has no readable {MANIFEST_NAME}: {exc}") from exc
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls: type[_Self], data: Any) -> _Self:
        """Return the manifest that ``data`` holds. Raises ``ManifestError`` saying what is wrong with it."""
        if not isinstance(data, dict):
            raise ManifestError("the manifest is not a JSON object")
        if data.get("schema") != SCHEMA:
            raise ManifestError(f"the manifest has schema {data.get('schema')!r}; this collection knows {SCHEMA}")
        if data.get("kind") != cls.KIND:
            raise ManifestError(f"the artifact is of kind {data.get('kind')!r}, not {cls.KIND}")
        types = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if item.name in data:
                _check_type(item.name, data[item.name], types[item.name])
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise ManifestError(f"the manifest does not tell its {item.name}")
        manifest = cls(**{item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data})
        manifest._check()
        return manifest

    def _check(self) -> None:
        if not self.BUILD_ID.fullmatch(self.build_id):
            raise ManifestError(f"{self.build_id!r} is not a build id")
        for name, digest in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not _SHA256.fullmatch(digest):
                raise ManifestError(f"the manifest lists {name!r} in a way that cannot be trusted")


def _check_type(name: str, value: Any, expected: Any) -> None:
    if not _fits(value, expected):
        words = expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)
        raise ManifestError(f"{name} of the manifest is not of type {words}")


def _fits(value: Any, expected: Any) -> bool:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if isinstance(value, bool):
        return expected is bool  # which is an int to Python, and none to JSON
    return isinstance(value, expected)
