# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that modules turn into ``fail_json``. PRIVATE to the collection."""

from __future__ import annotations


class LiveUpgradeError(Exception):
    """A failure worded for the operator: what happened, in what state things are, what to do next."""
