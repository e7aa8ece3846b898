# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the drives of a VM still what its command line says? PRIVATE to the collection.

A snapshot, a finished mirror or another medium puts a new image under a running guest. The command line still names the old
one, and a new process that opened that would destroy data: so this is looked at, drive by drive.
"""

from __future__ import annotations

import os
import re
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    Option,
    format_keyval,
    parse_keyval,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import Draft
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.running import RunningState

_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
_LIMIT_OPTION = re.compile(r"(throttling\.)?(bps|iops).*|group")
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_START_IT_ANEW = "shut the VM down and start it with its present images"


class Drives:
    """Compares ``-drive`` and ``-device ...,drive=`` with what the VM has open."""

    def __init__(self, draft: Draft, state: RunningState) -> None:
        """Notes on ``draft`` what block layers do for the VM that a new process could not go on with."""
        self._draft = draft
        self._state = state
        for job in state.jobs:
            self._problem("block-job", f"the job {job} is at work", "wait for its end, or cancel it")
        for export in state.exports:
            self._problem("block-export", f"the export {export} serves a block node", "stop it (block-export-del)")
        for drive in state.drives:
            self._check_bitmaps(drive)

    def drive(self, option: Option) -> list[Option]:
        """Return what takes the place of a ``-drive``."""
        fields = parse_keyval(option.value or "", "file")
        name = fields.get("id")
        now = self._state.drive_of(name) if name else None
        if now is None:
            return [option]
        self._check_limits(name or "", fields, now)
        medium = now.get("inserted")
        given = fields.get("file") or fields.get("file.filename")
        if medium is None and given:
            self._draft.change(f"drive {name} is empty: its medium was ejected since the start")
            kept = {key: value for key, value in fields.items() if key not in ("file", "format", "file.filename")}
            return [Option("drive", format_keyval(kept))]
        if medium is not None and not self._same_image(given, medium):
            self._switched(f"drive {name}", given or "nothing", str(medium.get("file")))
        return [option]

    def device(self, fields: dict[str, str]) -> None:
        """Check a device that was given a block node (not a ``-drive``) by its name."""
        name, node = fields.get("id"), fields.get("drive")
        now = self._state.drive_of(name) if name and node else None
        if now is None or now.get("device"):
            return
        self._check_limits(str(name), {}, now)
        present = (now.get("inserted") or {}).get("node-name")
        if present != node:
            self._switched(f"device {name}", str(node), str(present))

    def _same_image(self, given: str | None, medium: dict[str, Any]) -> bool:
        present = str(medium.get("file", ""))
        if given is None or given == present or present.startswith("json:"):
            return given is not None
        if _PROTOCOL.match(given) and not given.startswith("file:"):
            return given.rstrip("/") == present.rstrip("/")
        plain = given[5:] if given.startswith("file:") else given
        return os.path.realpath(self._draft.path(plain)) == os.path.realpath(self._draft.path(present))

    def _check_limits(self, name: str, fields: dict[str, str], now: dict[str, Any]) -> None:
        medium = now.get("inserted") or {}
        if any(medium.get(key) for key in _LIMITS) and not any(_LIMIT_OPTION.fullmatch(key) for key in fields):
            message = f"the I/O limits of {name} were set at run time and are not part of its command line"
            self._problem("limits-changed", message, "lift them for the time of the upgrade, then set them again")

    def _check_bitmaps(self, drive: dict[str, Any]) -> None:
        for bitmap in (drive.get("inserted") or {}).get("dirty-bitmaps", []):
            if not bitmap.get("persistent"):
                message = f"the dirty bitmap {bitmap.get('name', '')} is kept in the memory of the old process"
                self._problem("dirty-bitmap", message, "finish the backup that uses it and remove it")

    def _switched(self, what: str, before: str, now: str) -> None:
        message = f"the {what} was started on {before} and uses {now} now (snapshot, mirror or another medium)"
        self._problem("disk-switched", message, _START_IT_ANEW)

    def _problem(self, code: str, message: str, action: str) -> None:
        self._draft.problem(code, message, action)
