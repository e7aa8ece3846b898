# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pid file of a VM, for hand-overs after which the new QEMU does not write it itself. PRIVATE to the collection."""

from __future__ import annotations


def rewrite_pidfile(path: str, old_pid: int, new_pid: int) -> list[str]:
    """Have a pid file that names ``old_pid`` name ``new_pid``, in place, as QEMU itself does. Returns warnings.

    The path comes from the process of the VM, and this may run as root: what does not name that process is no file of its.
    """
    try:
        with open(path, "r+", encoding="ascii", errors="replace") as stream:
            named = stream.read(32).strip()
            if named not in (str(old_pid), str(new_pid)):
                return [f"the pid file {path} does not name the old process {old_pid}, and was left as it is"]
            stream.seek(0)
            stream.write(f"{new_pid}\n")
            stream.truncate()  # last, so that a disk without room leaves what it says
    except OSError as exc:
        return [f"the pid file {path} still names the old process: {exc.strerror}"]
    return []
