# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts of several controllers that are parts, shards, of one: who has which shard, and what failed in all of them.

All of it is one small document per fleet in a store that the controllers share, changed under a lock. A shard has one owner, by
a lease that ends by itself when it is not renewed, and a token that is greater than those of all owners before: whoever shows
a smaller one has lost the shard and is told so. PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, write_atomically
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import amount

SPEC: dict[str, Any] = {
    "store": {"type": "path", "required": True},
    "fleet": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "max_failed_vms": {"type": "int", "default": 0},
    "max_failed_hosts": {"type": "int", "default": 0},
    "lease_s": {"type": "int", "default": 900},
}
"""The options of a shard."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BUDGET = ("max_failed_vms", "max_failed_hosts")
_NAMED_FAILURES = 5
_RUNS, _LEFT, _ENDED = "runs", "left", "ended"
# Of a lease: it is renewed once a host, and not written for every one of them.
_WORTH_WRITING = 0.1

Document = dict[str, Any]


class StoreError(AnsibleError):  # type: ignore[misc]  # ansible-core ships no types
    """The store cannot be read or written. Whose the shard is, is not known; it was not lost."""


@dataclass(frozen=True)
class Tally:
    """What came of a shard so far, by the waves that were judged. ``failures``: the first of what failed, in words."""

    moved_vms: int
    failed_vms: int
    failed_hosts: int
    failures: Sequence[str]


class Shard:
    """One run's hold on a shard. ``token`` is what it has been given by ``take``."""

    def __init__(self, store: Path, fleet: str, name: str, token: int, lease_s: int) -> None:
        self._store, self._fleet, self._name = store, fleet, name
        self._token, self._lease_s = token, lease_s

    @classmethod
    def take(
        cls, options: Mapping[str, Any], rollout_id: str, addresses: Sequence[str], owner_pid: int, resumed: bool
    ) -> Shard:
        """Become the owner of a shard, which works on the machines ``addresses``. Raises ``AnsibleError`` where somebody else is,
        where another shard has one of the machines, or where failures have stopped the fleet.

        One who goes on with a rollout (``resumed``) may come back to a fleet that was stopped, to bring its own wave to its end,
        and may give it another budget, with which it is stopped no more.
        """
        _require_sound(options)
        store, fleet, name = Path(options["store"]).absolute(), options["fleet"], options["name"]
        budget = {key: options[key] for key in _BUDGET}
        with _changed(store, fleet) as document:
            shards = document.setdefault("shards", {})
            _require_free(document, name, rollout_id, addresses, resumed)
            if document.setdefault("budget", budget) != budget:
                if not resumed:
                    raise AnsibleError(
                        f"of the fleet {fleet} {_told_budget(document['budget'])}, by this shard {_told_budget(budget)}; nothing "
                        "was touched. All shards of a fleet give the same; to change it, go on with a shard "
                        "(upgrade_resume) and give the new one"
                    )
                document["budget"], document["stop"] = budget, None
                _stop_where_spent(document, name)
            document["token"] = document.get("token", 0) + 1
            earlier = shards.pop(name, None)
            if earlier and earlier["rollout_id"] != rollout_id:
                # what failed then has failed, whatever comes of the new attempt
                shards[f"{name} ({earlier['rollout_id']})"], earlier = earlier, None
            shards[name] = {
                **(earlier or asdict(Tally(0, 0, 0, []))),
                "rollout_id": rollout_id,
                "owner": _owner(owner_pid),
                "token": document["token"],
                "until": _now_s() + options["lease_s"],
                "state": _RUNS,
                "addresses": sorted(addresses),
            }
            return cls(store, fleet, name, document["token"], options["lease_s"])

    @classmethod
    def of(cls, events: Sequence[Event]) -> Shard | None:
        """Return the shard that the last run in a journal has taken, None where it is the rollout of no shard."""
        held = next((event.get("shard") for event in reversed(events) if event["event"] in ("begin", "resume")), None)
        return cls.from_dict(held) if held else None

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Shard:
        """The reverse of ``to_dict``. Numbers may have become text on the way through a playbook."""
        return cls(Path(held["store"]), held["fleet"], held["name"], int(held["token"]), int(held["lease_s"]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "store": str(self._store),
            "fleet": self._fleet,
            "name": self._name,
            "token": self._token,
            "lease_s": self._lease_s,
        }

    def renew(self, for_s: float = 0.0) -> None:
        """Stay the owner for the lease from now, and ``for_s`` on top. Raises ``AnsibleError`` when the shard was lost."""
        with _changed(self._store, self._fleet) as document:
            own, until = self._own(document), _now_s() + self._lease_s + for_s
            if until - own["until"] > self._lease_s * _WORTH_WRITING:
                own["until"] = until

    def count(self, tally: Tally) -> str:
        """Tell what came of the shard so far, and return in words what came of all. Stops the fleet where its budget is spent."""
        with _changed(self._store, self._fleet) as document:
            own = self._own(document)
            own.update(asdict(tally), until=_now_s() + self._lease_s)
            _stop_where_spent(document, self._name)
            return f"fleet {self._fleet}: {_told(document)}"

    def stopped(self) -> str | None:
        """Return why no shard of the fleet may go on, None where all may. Raises ``AnsibleError`` when the shard was lost."""
        with _changed(self._store, self._fleet) as document:
            self._own(document)["until"] = _now_s() + self._lease_s
            return document.get("stop")

    def release(self, finished: bool) -> None:
        """Let go of the shard, so that another need not wait for the end of the lease. Nothing happens where it was lost.

        One that is not ``finished`` is yet to be gone on with.
        """
        with _changed(self._store, self._fleet) as document:
            own = document.get("shards", {}).get(self._name)
            if own and own["token"] == self._token:
                own.update(state=_ENDED if finished else _LEFT, until=_now_s())

    def _own(self, document: Document) -> dict[str, Any]:
        own: dict[str, Any] = document.get("shards", {}).get(self._name) or {}
        if own.get("token") != self._token:
            by = f"was taken over by {own['owner']['name']}" if own else "is not in the store any more"
            raise AnsibleError(
                f"the shard {self._name} of the fleet {self._fleet} {by}; this run of it ends here. Hosts finish or undo what "
                "they have begun"
            )
        return own


def release(events: Sequence[Event], finished: bool) -> None:
    """Let go of the shard that the rollout of a journal is, if it is one. Where the store is away, the lease ends by itself."""
    shard = Shard.of(events)
    if shard:
        with contextlib.suppress(StoreError):
            shard.release(finished)


def tally(events: Sequence[Event]) -> Tally:
    """Return what the waves came to that a journal has the judgement of, each by its last one."""
    gates = {event["wave"]: event["gate"] for event in events if event["event"] == "gate"}
    evidence = [gate["evidence"] for gate in gates.values()]
    return Tally(
        moved_vms=sum(found["vms"] - found["failures"] for found in evidence),
        failed_vms=sum(found["failures"] for found in evidence),
        failed_hosts=sum(found["hosts_failed"] + found["hosts_unreachable"] for found in evidence),
        failures=[text for gate in gates.values() for text in gate["reasons"]][:_NAMED_FAILURES],
    )


def _require_sound(options: Mapping[str, Any]) -> None:
    for key in ("fleet", "name"):
        if not _NAME.fullmatch(options[key]):
            raise AnsibleError(
                f"upgrade_shard has {options[key]!r} as its {key}; nothing was touched. Use at most 64 letters, digits, '.', '_' "
                "and '-'"
            )
    low = [key for key in (*_BUDGET, "lease_s") if options[key] < (1 if key == "lease_s" else 0)]
    if low:
        raise AnsibleError(
            f"upgrade_shard has {options[low[0]]} as its {low[0]}, which is too small; nothing was touched"
        )


def _require_free(document: Document, name: str, rollout_id: str, addresses: Sequence[str], resumed: bool) -> None:
    for other, shard in document["shards"].items():
        if not _is_held(shard):
            continue
        who = f"{shard['owner']['name']} (rollout {shard['rollout_id']}) until {_clock(shard['until'])}"
        if other == name:
            raise AnsibleError(f"the shard {name} is that of {who}; nothing was touched. Wait for it, or stop it first")
        shared = sorted(set(addresses) & set(shard["addresses"]))
        if shared:
            raise AnsibleError(
                f"{', '.join(shared)} are in the shard {other}, too, which is that of {who}; nothing was touched. Give each host "
                "to one shard"
            )
    if resumed:
        return
    if document.get("stop"):
        raise AnsibleError(
            f"{document['stop']}. Nothing was touched. Mend the cause, then go on with the shards that were stopped "
            "(upgrade_resume, with a larger budget), or begin a new rollout under another name of the fleet"
        )
    left = document["shards"].get(name)
    if left and left["state"] != _ENDED:
        raise AnsibleError(
            f"the shard {name} was left in the middle of rollout {left['rollout_id']} by {left['owner']['name']}; nothing was "
            f"touched. Go on with that, -e upgrade_resume={left['rollout_id']}"
        )


def _is_held(shard: Mapping[str, Any]) -> bool:
    """Whether a shard has a living owner. Of one on this controller that is known; of another, its lease tells."""
    owner = shard["owner"]
    if shard["state"] != _RUNS or shard["until"] <= _now_s():
        return False
    here = owner["controller"] == lock.controller_id()
    return not here or lock.lives(owner["pid"], owner["start_ticks"])


def _owner(pid: int) -> dict[str, Any]:
    controller = lock.controller_id()
    return {
        "name": f"{controller} (process {pid})",
        "controller": controller,
        "pid": pid,
        "start_ticks": lock.start_ticks(pid),
    }


def _stop_where_spent(document: Document, name: str) -> None:
    """Once stopped, a fleet stays so whatever is counted later."""
    shards, budget = document["shards"], document["budget"]
    vms, hosts = (sum(shard[key] for shard in shards.values()) for key in ("failed_vms", "failed_hosts"))
    if document.get("stop") or (vms <= budget["max_failed_vms"] and hosts <= budget["max_failed_hosts"]):
        return
    failed = {other: shard for other, shard in shards.items() if shard["failed_vms"] or shard["failed_hosts"]}
    told = "; ".join(f"shard {other}: {', '.join(shard['failures']) or 'failures'}" for other, shard in failed.items())
    document["stop"] = (
        f"the shard {name} has spent the failure budget of its fleet: {_told_budget(budget)}, {_amounts(vms, hosts)} did: {told}"
    )


def _told(document: Document) -> str:
    shards = document["shards"].values()
    moved, vms, hosts = (sum(shard[key] for shard in shards) for key in ("moved_vms", "failed_vms", "failed_hosts"))
    return f"{amount(moved, 'VM')} moved and {_amounts(vms, hosts)} failed in all shards so far"


def _told_budget(budget: Mapping[str, int]) -> str:
    return f"{_amounts(budget['max_failed_vms'], budget['max_failed_hosts'])} may fail"


def _amounts(vms: int, hosts: int) -> str:
    return f"{amount(vms, 'VM')} and {amount(hosts, 'host')}"


@contextlib.contextmanager
def _changed(store: Path, fleet: str) -> Iterator[Document]:
    """Yield the fleet's document, alone with it, and keep what was changed once the block ends well."""
    path = store / f"{fleet}.json"
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(store / f".{fleet}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"the store {store} of the rollout's shards cannot be used: {exc}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        before = path.read_text(encoding="utf-8") if path.exists() else "{}"
        document = json.loads(before)
        yield document
        after = json.dumps(document, indent=1)
        if after != before:
            write_atomically(path, after)
    except (OSError, ValueError) as exc:
        raise StoreError(f"the store {path} of the rollout's shards cannot be used: {exc}") from exc
    finally:
        os.close(fd)


def _now_s() -> float:
    return datetime.datetime.now(datetime.timezone.utc).timestamp()


def _clock(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).isoformat(timespec="seconds")
