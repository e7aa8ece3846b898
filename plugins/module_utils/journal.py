# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of one transaction: one JSON object a line, on disk before the step it announces is taken.

Several processes append to one file (one ``write`` a record, ``O_APPEND``). A little disk space is held in reserve from
the start, so that a disk that fills up in the middle does not silence the journal. PRIVATE to the collection.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

_RESERVE_BYTES = 256 * 1024


class JournalError(LiveUpgradeError):
    """A record could not be made durable."""


class Journal:
    """Appends to, and reads, ``journal.jsonl`` of a transaction directory."""

    def __init__(self, directory: Path) -> None:
        """Open or create the journal in ``directory``. Raises ``JournalError`` when the disk has no room for it."""
        self.path = directory / "journal.jsonl"
        self._reserve = directory / "journal.reserve"
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not self._reserve.exists():
                self._allocate_reserve()
        except OSError as exc:
            raise JournalError(f"cannot keep a journal in {directory}: {exc.strerror}") from exc

    def close(self) -> None:
        """Close the journal and give the reserve back."""
        os.close(self._fd)
        self._reserve.unlink(missing_ok=True)

    def write(self, step: str, vm: str | None = None, **facts: Any) -> None:
        """Append one record and make it durable. Raises ``JournalError``.

        ``step`` names what is about to happen or has happened, ``vm`` the VM it is about, ``facts`` what a later
        reader needs to go on or to undo.
        """
        record = {"time": round(time.time(), 6), "step": step, **({"vm": vm} if vm else {}), **facts}
        line = (json.dumps(record, sort_keys=True) + "\n").encode()
        try:
            self._append(line)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._reserve.exists():
                raise JournalError(f"cannot write {self.path}: {exc.strerror}") from exc
            self._reserve.unlink(missing_ok=True)
            try:
                self._append(line)
            except OSError as again:
                raise JournalError(f"cannot write {self.path}, not even from its reserve: {again.strerror}") from again

    def _append(self, line: bytes) -> None:
        start = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written != len(line):
            os.ftruncate(self._fd, start)  # a torn record would be read as the end of the journal
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._fd)

    def _allocate_reserve(self) -> None:
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _RESERVE_BYTES)
            os.fsync(fd)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the records of a journal, oldest first; a last line torn by a crash is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
