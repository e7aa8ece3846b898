# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a host: which rollout may begin something here, until when, and by which of its runs.

A run has the host until what it began there has come to its end, or for some time after its last word.
Each run of a rollout has a token greater than that of every run before. The host keeps the greatest it was shown; a run with
a smaller one, such as that of a controller which was thought dead, is refused whatever it wants. PRIVATE to the collection.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

_ADOPTED = "lease.json"

LEASE_ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "options": {
        "token": {"type": "int", "required": True, "no_log": False},
        "owner": {"type": "str", "required": True},
        "seconds": {"type": "int", "default": 300},
    },
}
"""The argument of modules that a claim is made of; plugins/doc_fragments/lease.py describes it."""


class LeaseError(LiveUpgradeError):
    """The host is another run's."""


@dataclass(frozen=True)
class Claim:
    """Who asks for a host: a run of a rollout (``token``) of a controller (``owner``), for ``seconds`` from now on."""

    rollout_id: str
    owner: str
    token: int
    seconds: int

    @classmethod
    def of(cls, rollout_id: str | None, lease: Mapping[str, Any]) -> Claim:
        """Return the claim of the module's arguments. Raises ``LeaseError`` for what makes no sense."""
        if not rollout_id:
            raise LeaseError("a lease is a rollout's: give rollout_id, too. Nothing was touched")
        if lease["token"] < 1 or lease["seconds"] < 1:
            raise LeaseError(f"token and seconds of a lease must be at least 1, not {lease}. Nothing was touched")
        return cls(rollout_id, lease["owner"], lease["token"], lease["seconds"])


class Lease:
    """The lease of the host whose state is in ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lease.json"

    def take(self, claim: Claim, transaction: Path | None = None) -> None:
        """Take the host, or keep it for longer, and adopt ``transaction``. Raises ``LeaseError``; nothing is changed then.

        Another rollout's lease is taken over when it has run out, or is of the same controller, whose own locks have told
        that the other is dead.
        """
        with self._locked() as held:
            self._require(claim, held)
            entry = {**asdict(claim), "until": time.time() + claim.seconds}
            _write(self._path, entry)
            if transaction is not None:
                # What was begun by a run that is dead is now this one's: its engine may be started again.
                _write(transaction / _ADOPTED, entry)

    def give_up(self, claim: Claim) -> None:
        """Let others have the host, if it is still of ``claim``. Its token stays: what comes late of a run before is refused."""
        with self._locked() as held:
            if held and held["token"] == claim.token:
                _write(self._path, {**held, "until": 0})

    def require_adopted(self, transaction: Path) -> None:
        """Raise ``LeaseError`` when ``transaction`` was begun for a run that has since lost the host."""
        if not (transaction / _ADOPTED).is_file():
            return
        adopted = json.loads((transaction / _ADOPTED).read_text(encoding="utf-8"))
        with self._locked() as held:
            if held and held["token"] > adopted["token"]:
                raise LeaseError(_refusal(adopted["rollout_id"], held, "a later run has taken this host"))

    def _require(self, claim: Claim, held: Mapping[str, Any]) -> None:
        if not held:
            return
        if claim.token < held["token"]:
            raise LeaseError(_refusal(claim.rollout_id, held, "a later run has taken this host since"))
        left_s = held["until"] - time.time()
        same = claim.rollout_id == held["rollout_id"] or claim.owner == held["owner"]
        if not same and left_s > 0:
            raise LeaseError(_refusal(claim.rollout_id, held, f"it holds this host for {left_s:.0f} s more"))

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """Yield what the host keeps, while nobody else looks at it or changes it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        finally:
            os.close(fd)


@contextmanager
def leased(
    state_dir: Path, rollout_id: str | None, lease: Mapping[str, Any] | None, keep: bool = False
) -> Iterator[None]:
    """Keep the host from other rollouts while something is done that is over at the end; without ``lease`` nobody is kept out.

    ``keep``: and on after that, when it went well, for what is to follow. Raises ``LeaseError``; nothing is to be done then.
    """
    if not lease:
        yield
        return
    claim = Claim.of(rollout_id, lease)
    host = Lease(state_dir)
    host.take(claim)
    is_kept = False
    try:
        yield
        is_kept = keep
    finally:
        if not is_kept:
            host.give_up(claim)


def _refusal(rollout_id: str, held: Mapping[str, Any], why: str) -> str:
    return (
        f"host {os.uname().nodename}: rollout {rollout_id} may not begin anything here: {why} (rollout {held['rollout_id']} of "
        f"{held['owner']}, token {held['token']}). Nothing was touched; look at that rollout, or wait for its end"
    )


def _write(path: Path, entry: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(entry, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
