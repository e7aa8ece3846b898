# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module of the kernel says of itself. PRIVATE to the collection."""

from __future__ import annotations

import re
from pathlib import Path

# The kernel looks for these bytes at the very end (include/linux/module_signature.h).
_SIGNATURE_MARK = b"~Module signature appended~\n"


def module_information(module: Path) -> dict[str, str]:
    """Return what ``modinfo`` shows of a module that is not compressed, of each key the last value."""
    return information_in(module.read_bytes())


def information_in(data: bytes) -> dict[str, str]:
    """Return the same of a module's bytes."""
    pairs = re.findall(rb"(?:^|\0)([a-z_]+)=([^\0]*)(?=\0)", data)
    return {key.decode(): value.decode(errors="replace") for key, value in pairs}


def is_signed(module: Path) -> bool:
    """Tell whether a signature is appended to the module, by whomever."""
    return module.read_bytes().endswith(_SIGNATURE_MARK)
