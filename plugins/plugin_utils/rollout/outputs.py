# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files a report is written to: JSON with its status, page, JUnit, metrics. PRIVATE to the collection."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import JOURNALS, Event, write_atomically
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.junit import render_junit
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.metrics import render_metrics
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import write_status_of

Report = Mapping[str, Any]

RENDERERS: Mapping[str, Callable[[Report], str]] = {
    "html": render_page,
    "junit": render_junit,
    "prometheus": render_metrics,
}
"""What a report can be written as beside JSON, by the name of the option that gives the path."""

_BESIDE = {"html": ".html", "junit": ".junit.xml"}


def planned_outputs(report_path: Path, asked: Mapping[str, str | None]) -> dict[str, str]:
    """Return where to write what: as ``asked``, an empty path for not at all, and by default beside the report.

    Metrics are written only where a path is given: they are of use in the folder of the collector alone.
    """
    beside = {kind: str(report_path.with_name(report_path.stem + suffix)) for kind, suffix in _BESIDE.items()}
    chosen = {**beside, **{kind: path for kind, path in asked.items() if path is not None}}
    return {kind: str(Path(path).expanduser().absolute()) for kind, path in chosen.items() if path}


def report_path(begin: Event, journal: Path) -> Path:
    """Return where the report of a journal goes: beside the folder it is in.

    That may be another one than where the rollout began: a job of CI goes on in a working copy of its own, or on another machine.
    """
    began_at = Path(begin["report"])
    return journal.parent.parent / began_at.name if journal.parent.name == JOURNALS else began_at


def outputs_of(begin: Event, journal: Path) -> dict[str, str]:
    """Return where to write what else; a journal of a version that wrote JSON alone has nothing.

    What was beside the report stays so; what was given a place elsewhere keeps it.
    """
    began_in, now_in = Path(begin["report"]).parent, report_path(begin, journal).parent
    return {
        kind: str(now_in / Path(path).name) if Path(path).parent == began_in else path
        for kind, path in (begin.get("outputs") or {}).items()
    }


def of_plan(path: Path) -> Path:
    """Return where a check mode run writes what else goes to ``path``, which tells of a rollout and stays."""
    return path.with_name(f"{path.stem}.plan{path.suffix}")


def write_report(report: Report, path: Path) -> None:
    """Write ``report`` to ``path`` as JSON, atomically, and beside it how the rollout stands."""
    write_atomically(path, json.dumps(report, indent=2) + "\n")
    write_status_of(report, path)


def write_outputs(report: Report, outputs: Mapping[str, str]) -> list[str]:
    """Write ``report`` to every path of ``outputs`` that does not hold it yet, and return those that were written."""
    changed = pending_outputs(report, outputs)
    for path, text in changed.items():
        write_atomically(Path(path), text)
    return list(changed)


def pending_outputs(report: Report, outputs: Mapping[str, str]) -> dict[str, str]:
    """Return path → text of what ``write_outputs`` would write."""
    texts = {path: RENDERERS[kind](report) for kind, path in outputs.items()}
    return {path: text for path, text in texts.items() if not _holds(Path(path), text)}


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
