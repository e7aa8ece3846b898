# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cores are on trial: loaded for VMs that may have to leave them again. PRIVATE to the collection.

Noted before the core is loaded, so that whoever comes after one who died in between knows whose it is. Notes go with a
reboot, as the cores do.
"""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = "run/vmm-live-upgrade/kvm-on-trial"


class Trials:
    """The notes of the host whose files are below ``root``: one file for each core, of its name."""

    def __init__(self, root: Path) -> None:
        self._folder = root / _FOLDER

    def __contains__(self, name: str) -> bool:
        return (self._folder / name).exists()

    def names(self) -> list[str]:
        """Return the names of the cores that are noted, whether they are loaded or not."""
        return sorted(os.listdir(self._folder)) if self._folder.is_dir() else []

    def begin(self, name: str) -> None:
        """Note that the core ``name`` is on trial."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / name).touch()

    def end(self, name: str) -> None:
        """Forget it: the core stays, or is gone."""
        (self._folder / name).unlink(missing_ok=True)
