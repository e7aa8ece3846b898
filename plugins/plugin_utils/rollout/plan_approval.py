# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the fleet is still what a plan was made of. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan import (
    Plan,
    differences,
    load_plan,
    make_plan,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_facts import Settings, read_host
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import NotApprovedError


def require_unchanged(path: Path, hosts: Sequence[str], task_vars: Mapping[str, Any]) -> Plan:
    """Return the plan in ``path`` after planning once more with what the hosts answered now.

    Raises ``NotApprovedError`` with the differences when that comes to another plan: an approval is of what was shown.
    """
    plan = load_plan(path)
    settings = Settings(**plan["settings"])
    stray = sorted(set(settings.exclude) - set(hosts))
    kept = {host: why for host, why in settings.exclude.items() if host not in stray}
    asked = Settings(**{**plan["settings"], "exclude": kept})
    now = make_plan(asked, [read_host(host, task_vars["hostvars"][host], asked) for host in hosts])
    changed = differences(plan, now)
    if changed:
        raise NotApprovedError(
            f"the fleet has changed since {plan['plan_id']} was made, so its approval does not hold; nothing was touched. "
            f"{'; '.join(changed)}. Make a new plan (playbooks/plan.yml), and have that approved"
        )
    return plan
