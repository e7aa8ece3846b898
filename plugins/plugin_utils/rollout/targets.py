# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where VMs go in a roll-back, by the report of what it undoes or by a build that is named. PRIVATE to the collection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import require_build_id
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import (
    load_report,
    previous_builds,
    previous_cores,
    previous_defaults,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import journal_beside

_ROLLOUT_ID = re.compile(r"(?:upgrade|rollback)-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")


def find_targets(
    arguments: Mapping[str, Any],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str], dict[str, dict[str, Any]]]:
    """Return for a roll-back, per host, the groups of VMs that go to a build, the build for VMs yet to be started, and what
    to do with the KVM cores (see ``previous_cores``).
    """
    build_id, kvm_build_id, wanted = arguments["build_id"], arguments["kvm_build_id"], arguments["vms"]
    require_build_id(kvm_build_id, f"{arguments['kind']}_kvm_build")
    if arguments["kind"] == "upgrade":
        if not build_id:
            raise AnsibleError("an upgrade needs a build: -e upgrade_build=<build id>; nothing was touched")
        return {}, {}, {}
    if kvm_build_id and not build_id:
        raise AnsibleError(
            "rollback_kvm_build needs rollback_build, too, which may be the build that the VMs run; nothing was touched"
        )
    if build_id:
        group = {"build_id": build_id, "vms": wanted, **({"kvm_build_id": kvm_build_id} if kvm_build_id else {})}
        targets = {host: [group] for host in arguments["hosts"]}
        if wanted:
            return targets, {}, {}
        cores = {host: {"default": kvm_build_id, "unload": []} for host in arguments["hosts"] if kvm_build_id}
        return targets, dict.fromkeys(arguments["hosts"], build_id), cores
    if not arguments["previous_report"]:
        raise AnsibleError("a roll-back needs rollback_build or a report to go by (rollback_from); nothing was touched")
    report = load_report(_previous(arguments))
    targets = previous_builds(report, wanted)
    return targets, {} if wanted else previous_defaults(report), previous_cores(report, wanted)


def journal_to_undo(arguments: Mapping[str, Any]) -> Journal | None:
    """The journal of the rollout that is gone back on, so that nobody goes on with it; None where it is not known."""
    if arguments["build_id"]:
        return None
    previous = _previous(arguments)
    if previous.suffix != ".jsonl":
        previous = journal_beside(previous.absolute(), load_report(previous)["rollout_id"])
    return Journal(previous) if previous.is_file() else None


def _previous(arguments: Mapping[str, Any]) -> Path:
    """The report or journal to go by; an alert or a job knows a rollout by its id."""
    previous = Path(arguments["previous_report"])
    if not _ROLLOUT_ID.fullmatch(str(previous)):
        return previous
    journal = journal_beside(Path(arguments["report"]).absolute(), str(previous))
    if not journal.is_file():
        raise AnsibleError(
            f"there is no journal {journal} of that rollout; nothing was touched. Give rollback_from=<its report or journal>, or "
            "its id and a rollback_report in the folder of its report"
        )
    return journal
