#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_finish.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_finish
short_description: End a rollout and tell how it went
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Writes the report with its page, JUnit XML and metrics as M(vmm.live_upgrade.rollout_begin) was told, gives the hosts free,
    prints the table, and fails unless every wave passed.
  - Of a rollout that has ended before it only tells once more. One that waits for a maintenance window has not ended.
  - The journal of a plan (check mode) is removed, its report stays.
options:
  journal:
    description:
      - Path of the rollout's journal, as M(vmm.live_upgrade.rollout_begin) returned it.
    type: path
    required: true
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.rollout_begin
  - module: vmm.live_upgrade.rollout_report
"""

EXAMPLES = r"""
- name: Write the report, free the hosts, tell the truth
  vmm.live_upgrade.rollout_finish:
    journal: "{{ rollout.journal }}"
"""

RETURN = r"""
status:
  description: How the rollout stands, in one word; docs/rollout.md has them all.
  returned: always
  type: str
verdict:
  description: V(ok), V(failed), V(paused) when it stopped after a wave that passed, as asked, or V(aborted) when it waits for a
    maintenance window.
  returned: always
  type: str
report:
  description: Path of the report (docs/upgrade.schema.json).
  returned: always
  type: str
outputs:
  description: Paths of what else was written of the report, by C(html), C(junit), C(prometheus).
  returned: always
  type: dict
summary:
  description: Counts per outcome, and n, median and maximum of the measured downtimes.
  returned: always
  type: dict
"""
