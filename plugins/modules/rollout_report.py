#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_report.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_report
short_description: Show the report of a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Prints the report as a table, and writes it as a page, as JUnit XML or as metrics where asked.
  - Takes the journal of a rollout too, for a run that was killed before it wrote its report.
options:
  report:
    description:
      - Path of a report (C(.json)) or of a journal (C(.jsonl)).
    type: path
    required: true
  html:
    description:
      - Path of the page to write.
    type: path
  junit:
    description:
      - Path of the JUnit XML to write.
    type: path
  prometheus:
    description:
      - Path of the metrics to write, for the textfile collector of node_exporter. It reads files that end in C(.prom).
    type: path
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
  - module: vmm.live_upgrade.rollout_finish
"""

EXAMPLES = r"""
- name: Show the last rollout
  vmm.live_upgrade.rollout_report:
    report: build/results/upgrade.json
    html: build/results/upgrade.html
"""

RETURN = r"""
verdict:
  description: V(ok), V(failed) or V(aborted).
  returned: success
  type: str
summary:
  description: Counts per outcome, and n, median and maximum of the measured downtimes.
  returned: success
  type: dict
outputs:
  description: Paths of what was asked for, by option.
  returned: success
  type: dict
"""
