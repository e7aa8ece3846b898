# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as one self-contained page: no script, nothing fetched, readable in print. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page import (
    checks,
    distribution,
    facts,
    problems,
    timeline,
    watched,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import (
    amount,
    clock,
    milliseconds,
    short_build,
    span,
)

Report = Mapping[str, Any]

_TEMPLATES = Path(__file__).with_name("templates")


def render_page(report: Report) -> str:
    """Return the page of ``report``. Every value is escaped."""
    digest = _digest(report)
    report = _completed(report)
    return _template().render(
        report=report,
        headline=facts.headline(report),
        figures=facts.figures(report),
        standing=facts.standing(report),
        builds=facts.builds(report),
        problems=problems.problems(report),
        rollbacks=facts.rollbacks(report),
        cores=facts.cores(report),
        vms=facts.vm_rows(report),
        silent_hosts=facts.hosts_without_vms(report),
        timeline=timeline.draw(report),
        watched=watched.seen(report),
        distribution=distribution.draw(report),
        checks={wave["index"]: checks.rows(wave["gate"]) for wave in report["waves"] if wave["gate"]},
        duration=span(report["started"], report["finished"]),
        digest=digest,
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms=milliseconds, clock=clock, build=short_build, amount=amount)
    return environment.get_template("report.html.j2")


def _completed(report: Report) -> Report:
    """The report with what versions before did not keep as not known."""
    known: dict[str, Any] = {"kvm": None, "vm_class": None, "pause_budget_ms": None, "finished": None}
    return {"kvm_build": None, **report, "vms": [{**known, **vm} for vm in report["vms"]]}


def _digest(report: Report) -> str:
    """The checksum of the JSON file this page tells of, so that an auditor can hold one against the other."""
    return hashlib.sha256((json.dumps(report, indent=2) + "\n").encode()).hexdigest()
