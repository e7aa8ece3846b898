# SPDX-License-Identifier: GPL-3.0-or-later
"""A cache whose entries are folders named by the hash of everything that went into them.

An entry appears by one rename of a folder that is complete and on disk, so a killed run leaves at most a folder under
``tmp/`` that the next builder of the same entry removes. Builders of one entry wait for each other on a lock file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENTRY_FILE = "entry.json"


def default_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vmm-live-upgrade"


def content_key(material: dict[str, Any]) -> str:
    """16 hex digits over ``material`` (anything JSON can hold)."""
    text = json.dumps(material, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Cache:
    """Entries ``<root>/<kind>/<key>/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, kind: str, material: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of this entry; ``build(empty_folder)`` fills it if it is not there yet.

        Side effects: takes the entry's lock while it builds; marks the entry as used. Whatever ``build`` raises
        comes through, and no entry appears.
        """
        key = content_key(material)
        final = self.root / kind / key
        with self._locked(f"{kind}-{key}"):
            if not final.is_dir():
                self._build(kind, key, material, build)
            os.utime(final / ENTRY_FILE)
        return final

    def _build(self, kind: str, key: str, material: dict[str, Any], build: Callable[[Path], None]) -> None:
        work = self.root / "tmp" / f"{kind}-{key}"
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        try:
            build(work)
            (work / ENTRY_FILE).write_text(json.dumps(material, sort_keys=True, indent=1) + "\n")
            os.sync()
            final = self.root / kind / key
            final.parent.mkdir(parents=True, exist_ok=True)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def prune(self, kind: str, keep: int) -> list[Path]:
        """Remove all but the ``keep`` entries used last. A lab that runs from one keeps its open files.

        Returns what was removed.
        """
        folder = self.root / kind
        if not folder.is_dir():
            return []
        by_use = sorted(folder.iterdir(), key=lambda entry: (entry / ENTRY_FILE).stat().st_mtime, reverse=True)
        for entry in by_use[keep:]:
            with self._locked(f"{kind}-{entry.name}"):
                shutil.rmtree(entry)
        return by_use[keep:]

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / name, "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
