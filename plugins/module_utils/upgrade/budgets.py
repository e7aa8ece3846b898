# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a VM may be paused: by its class where classes have budgets, else as long as any. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


@dataclass(frozen=True)
class PauseBudget:
    """The longest pause of one VM in milliseconds, and the class that it comes from; null when it is that of all VMs."""

    ms: int
    vm_class: str | None = None

    def __str__(self) -> str:
        return f"{self.ms} ms (class {self.vm_class})" if self.vm_class else f"{self.ms} ms"


class PauseBudgets:
    """The budgets of a request."""

    def __init__(self, default_ms: int, by_class_ms: Mapping[str, Any], class_of: Mapping[str, Any]) -> None:
        """``class_of``: VM name → class, also of VMs that are elsewhere. Raises ``LiveUpgradeError`` for what makes no sense.

        A class without a budget is an error where other classes have one: a word that is spelt wrong must not give a VM
        the pause of another.
        """
        self._default = PauseBudget(default_ms)
        self._by_class = {str(name): PauseBudget(_ms(name, ms), str(name)) for name, ms in by_class_ms.items()}
        self._class_of = {str(vm): str(name) for vm, name in class_of.items()}
        unknown = sorted((name, vm) for vm, name in self._class_of.items() if name not in self._by_class)
        if self._by_class and unknown:
            raise LiveUpgradeError(
                f"pause_budgets_ms has no budget for class {unknown[0][0]!r} (of VM {unknown[0][1]}), only for "
                f"{', '.join(sorted(self._by_class))}. Add one, or correct vm_classes"
            )

    def of(self, vm: str) -> PauseBudget:
        """Return the budget of a VM."""
        return self._by_class.get(self._class_of.get(vm, ""), self._default)


def _ms(vm_class: object, value: object) -> int:
    """A budget as it comes from an inventory or the command line, where numbers are words."""
    text = str(value)
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise LiveUpgradeError(
            f"pause_budgets_ms: the budget of class {str(vm_class)!r} must be a whole number of milliseconds, at least 1, "
            f"not {value!r}"
        )
    return int(text)
