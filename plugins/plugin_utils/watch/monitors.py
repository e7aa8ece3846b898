# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which monitor of a VM may be watched without being in anybody's way. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def spare_monitor(monitors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the path of the monitor to watch, or an empty one and why there is none.

    ``monitors``: as ``vm_health`` tells them. A monitor serves one client at a time, and the upgrade takes the first that
    serves it. So the last one is watched, and only where the upgrade has another.
    """
    free = [monitor for monitor in monitors if monitor["state"] == "ok"]
    if not monitors:
        return "", "it has no QMP monitor on a UNIX socket"
    if not free:
        return "", "its monitors are in use by somebody else, or dead"
    if len(free) == 1:
        used = " that is not in use by somebody else" if len(monitors) > 1 else ""
        return "", f"it has one monitor{used}, which the upgrade needs; give it another -qmp"
    last = free[-1]
    if not last["on_host"]:
        return "", f"its monitor {last['path']} lies in a mount namespace of its own, where sshd does not see it"
    return str(last["path"]), ""
