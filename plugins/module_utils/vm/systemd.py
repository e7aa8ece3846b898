# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the systemd unit of a VM live on when its main process is replaced? PRIVATE to the collection."""

from __future__ import annotations

import subprocess


def why_unit_ends_with(unit: str | None, pid: int) -> str | None:
    """Return why ending process ``pid`` would end ``unit`` and with it the new process, or None when it would not.

    A scope lives as long as any process does. A service ends with its main process unless it has ``ExitType=cgroup``.
    """
    if unit is None or not unit.endswith(".service"):
        return None
    shown = subprocess.run(
        ["systemctl", "show", "--property=ExitType,MainPID", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if shown.returncode:
        return f"systemd does not tell about unit {unit}: {shown.stderr.strip()}"
    properties = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    if properties.get("MainPID") != str(pid) or properties.get("ExitType") == "cgroup":
        return None
    return f"unit {unit} ends with its main process {pid} and would take the new process with it"
