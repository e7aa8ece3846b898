# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a host to have a core there, as the default, or gone: values that can be shown and tested.

PRIVATE to the collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import THIN


class Change:
    """One thing to do; ``str`` of it tells it in words."""


@dataclass(frozen=True)
class Unload(Change):
    """Unload a module, as soon as nobody uses it, for which there is some patience."""

    module: str
    patience_s: float = 0

    def __str__(self) -> str:
        """Return the change in words."""
        return f"unload {self.module}"


@dataclass(frozen=True)
class Load(Change):
    """Load a module from its file."""

    module: str
    path: Path

    def __str__(self) -> str:
        """Return the change in words."""
        return f"load {self.module}"


@dataclass(frozen=True)
class Trial(Change):
    """Note that the core ``name`` is on trial, or that it is not any more."""

    name: str
    begins: bool

    def __str__(self) -> str:
        """Return the change in words."""
        return f"note that core {self.name} is {'' if self.begins else 'no longer '}on trial"


@dataclass(frozen=True)
class Rule(Change):
    """Have udev know the nodes of cores, until the next boot."""

    def __str__(self) -> str:
        """Return the change in words."""
        return "have udev know the nodes of cores"


@dataclass(frozen=True)
class Node(Change):
    """Wait until a core's node is there for the group ``kvm``."""

    node: str

    def __str__(self) -> str:
        """Return the change in words."""
        return f"have {self.node} for the group kvm"


@dataclass(frozen=True)
class Default(Change):
    """Have ``/dev/kvm`` open the core ``name``."""

    name: str

    def __str__(self) -> str:
        """Return the change in words."""
        return f"make core {self.name} the default"


@dataclass(frozen=True)
class Boot(Change):
    """Have these builds loaded at boot."""

    builds: tuple[str, ...]

    def __str__(self) -> str:
        """Return the change in words."""
        return f"load at boot: {', '.join(self.builds)}" if self.builds else "load the kernel's own KVM at boot"


@dataclass(frozen=True)
class Picture:
    """What a host has, as far as it is changed here."""

    modules: tuple[str, ...]
    default: str | None
    boot: tuple[str, ...]
    trials: tuple[str, ...] = ()

    def text(self) -> str:
        """Return a line for each thing, for a diff."""
        lines = [f"loaded: {module}" for module in sorted(self.modules)]
        lines.append(f"default: {self.default or 'none'}")
        lines += [f"on trial: {name}" for name in self.trials]
        lines += [f"at boot: {build}" for build in self.boot]
        return "".join(f"{line}\n" for line in lines)

    def after(self, changes: Sequence[Change]) -> Picture:
        """Return what the host has when ``changes`` have been made."""
        modules, default, boot, trials = list(self.modules), self.default, self.boot, set(self.trials)
        for change in changes:
            if isinstance(change, Unload):
                modules.remove(change.module)
                default = None if change.module == f"kvm_core_{default}" else default
            elif isinstance(change, Load):
                modules.append(change.module)
                if default is None and change.module != THIN:
                    default = change.module.rpartition("_")[2]
            elif isinstance(change, Default):
                default = change.name
            elif isinstance(change, Boot):
                boot = change.builds
            elif isinstance(change, Trial):
                (trials.add if change.begins else trials.discard)(change.name)
        return Picture(tuple(modules), default, boot, tuple(sorted(trials)))
