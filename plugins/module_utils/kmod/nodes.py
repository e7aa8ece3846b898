# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device nodes of cores: for whom ``/dev/kvm`` is. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import grp
import os
import stat
import subprocess
import time
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

RULE_NAME = "60-kvm-cores.rules"
# The text of kmod/udev/60-kvm-cores.rules, which does not come to the hosts.
RULE = """\
# SPDX-License-Identifier: GPL-2.0-only
# The nodes of KVM cores are for whom /dev/kvm is: the distribution's own rule names only that.
SUBSYSTEM=="misc", KERNEL=="kvm-*", GROUP="kvm", MODE="0660"
"""
GROUP = "kvm"
MODE = 0o660
_RULE_FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d")
_POLL_S = 0.05


class Nodes:
    """The nodes below ``root``."""

    def __init__(self, root: Path = Path("/"), limit_s: float = 15) -> None:
        self._root = root
        self._limit_s = limit_s

    def rule_missing(self) -> bool:
        """Tell whether udev has no rule for the nodes of cores."""
        return not any((self._root / folder / RULE_NAME).exists() for folder in _RULE_FOLDERS)

    def install_rule(self) -> None:
        """Have udev know the rule, until the next reboot."""
        path = self._root / "run/udev/rules.d" / RULE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RULE)
        reload_udev()

    def right(self, node: str) -> bool:
        """Tell whether a node is there, for the group ``kvm``."""
        return self._wrong(node) is None

    def wait(self, node: str) -> None:
        """Wait until the node is there as it should be; udev is asked once to look again. Raises ``LiveUpgradeError``."""
        end_s = time.monotonic() + self._limit_s
        ask_s = time.monotonic() + self._limit_s / 5
        while (wrong := self._wrong(node)) is not None:
            if time.monotonic() >= end_s:
                raise LiveUpgradeError(f"{node} {wrong}: see what udev makes of {RULE_NAME} (udevadm test)")
            if time.monotonic() >= ask_s:
                ask_s = end_s
                _udevadm("trigger", "--action=change", f"--name-match={node}")
            time.sleep(_POLL_S)

    def _wrong(self, node: str) -> str | None:
        try:
            status = os.stat(self._root / node.lstrip("/"))
        except FileNotFoundError:
            return "is not there"
        if not stat.S_ISCHR(status.st_mode):
            return "is no device"
        group, mode = _group(), stat.S_IMODE(status.st_mode)
        if (status.st_gid, mode) != (group, MODE):
            return f"has group {status.st_gid} and mode {mode:04o}, not {group} and {MODE:04o}"
        return None


def reload_udev() -> None:
    """Have udev read its rules again."""
    _udevadm("control", "--reload")


def _udevadm(*arguments: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["udevadm", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _group() -> int:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return 0  # what udev makes of a group that the host does not have
