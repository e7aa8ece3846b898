# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of modules that change a host for a rollout."""

from __future__ import annotations


class ModuleDocFragment:
    """As which run of which rollout the host is asked for."""

    DOCUMENTATION = r"""
options:
  lease:
    description:
      - As which run of O(rollout_id) the host is asked for. It is taken by this, and kept from rollouts of other controllers
        until what was begun has come to an end, or the time is over. A run that is older than the one which took the host
        last is refused.
      - Without it nobody is kept out but for as long as this runs.
    type: dict
    suboptions:
      token:
        description:
          - Number of the run, greater than that of all runs before it.
        type: int
        required: true
      owner:
        description:
          - Name of the controller.
        type: str
        required: true
      seconds:
        description:
          - How long the host is kept at most, from each call on.
        type: int
        default: 300
"""
