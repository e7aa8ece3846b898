# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a rollout stands, in one word for a CI job, in a file of its own (docs/status.schema.json). PRIVATE to the collection.

ansible-playbook ends with 2 for a wave that was rolled back, for an approval that is missing and for a wrong option alike. The
report can't tell them apart either: of a run that was refused there is none, and that of the last rollout has to stay.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.checks import FAIL
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import utc_now, write_atomically
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.progress import stops

SCHEMA = 1

DONE = "done"
WAVE_DONE = "wave_done"
PLANNED = "planned"
ROLLED_BACK = "rolled_back"
STOPPED = "stopped"
ATTENTION = "attention"
PAUSED = "paused"
WAITING = "waiting"
INTERRUPTED = "interrupted"
RUNNING = "running"
NOT_APPROVED = "not_approved"
NOT_STARTED = "not_started"

ASKED, WINDOW, PERSON = "asked", "window", "person"
"""What a rollout that is not at its end waits for: the next job, a maintenance window, a decision."""

_OF_PAUSE = {ASKED: WAVE_DONE, WINDOW: WAITING, PERSON: PAUSED}

Report = Mapping[str, Any]


class NotApprovedError(AnsibleError):  # type: ignore[misc]  # ansible-core ships no types
    """What is asked for was not approved, or is not any more what was."""


def status_path(report: Path) -> Path:
    """Return where the status is written: beside the report."""
    return report.with_name(f"{report.stem}.status.json")


@contextlib.contextmanager
def refusal_told(report: Path) -> Iterator[None]:
    """Have the status say that nothing has begun, and why, whatever becomes of what is done inside."""
    write_status(report, NOT_STARTED, "the run ended before anything was begun; its output tells why")
    try:
        yield
    except AnsibleError as exc:
        write_status(report, NOT_APPROVED if isinstance(exc, NotApprovedError) else NOT_STARTED, str(exc))
        raise


def write_status(
    report: Path, status: str, reason: str, rollout_id: str | None = None, next_wave: int | None = None
) -> None:
    """Replace the status beside ``report``. ``next_wave``: the first that has not passed."""
    told = {
        "schema": SCHEMA,
        "at": utc_now(),
        "status": status,
        "reason": reason,
        "rollout_id": rollout_id,
        "next_wave": next_wave,
        "report": report.name,
    }
    write_atomically(status_path(report), json.dumps(told, indent=2) + "\n")


def write_status_of(report: Report, path: Path) -> None:
    """Replace the status beside the report in ``path`` with that of ``report``."""
    left = [wave["index"] for wave in report["waves"] if (wave["gate"] or {}).get("then") not in ("go_on", "grow")]
    write_status(path, report["status"], report["exit_reason"], report["rollout_id"], min(left, default=None))


def status_of(report: Report, waits_for: str | None) -> str:
    """Return the status of a rollout whose run has ended. ``waits_for``: what it is to be gone on with after, if it is."""
    if report["mode"] == "plan":
        return PLANNED if report["verdict"] == "ok" else STOPPED
    if report["verdict"] == "ok":
        return DONE
    if waits_for:
        return _OF_PAUSE[waits_for]
    return INTERRUPTED if report["verdict"] == "aborted" else _of_failure(report)


def _of_failure(report: Report) -> str:
    """A failure is over only when all that the failed wave had moved is known to be back, and no guest came to harm."""
    waves = _failed_waves(report["waves"])
    if report["kind"] == "rollback" or not waves:
        return ATTENTION
    indexes = {wave["index"] for wave in waves}
    vms = [vm for vm in report["vms"] if vm["wave"] in indexes]
    hosts = [host for host in report["hosts"] if host["wave"] in indexes]
    harmed = any(
        check["check"] == "hard_stop" and check["verdict"] == FAIL for wave in waves for check in wave["gate"]["checks"]
    )
    unclear = any(vm["outcome"] in ("failed", "lost") for vm in vms) or any(
        host["rollback"] not in (None, "ok") or (host["started"] and not host["finished"]) for host in hosts
    )
    if harmed or unclear or any(vm["outcome"] == "upgraded" and not _is_back(vm) for vm in vms):
        return ATTENTION
    went = any(_is_back(vm) or vm["outcome"] == "rolled_back" for vm in vms)
    return ROLLED_BACK if went else STOPPED


def _failed_waves(waves: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The wave that stopped the rollout, with those before that grew into it."""
    found: list[Mapping[str, Any]] = []
    for wave in waves:
        if wave["gate"] is None:
            continue
        if stops(wave["gate"]):
            return [*found, wave]
        found = [*found, wave] if wave["gate"]["then"] == "grow" else []
    return []


def _is_back(vm: Mapping[str, Any]) -> bool:
    return (vm["rollback"] or {}).get("outcome") in ("upgraded", "already")
