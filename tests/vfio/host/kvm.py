# SPDX-License-Identifier: GPL-3.0-or-later
"""Which KVM the host has: the kernel's own, or kvm_thin with two cores."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

_FOLDER = Path("/cores")
# As the host's first process has loaded them, and in which order they go.
_OWN = ("kvm_amd", "kvm")
_LET_GO_S = 30.0


def loaded(module: str) -> bool:
    return any(line.split()[0] == module for line in Path("/proc/modules").read_text().splitlines())


def have_cores() -> None:
    """Put kvm_thin and the cores in the place of the kernel's own KVM. No VM may run."""
    if loaded("kvm_thin"):
        return
    for module in _OWN:
        _unload(module)
    for module in ("kvm_thin", "core_a", "core_b"):
        subprocess.run(["insmod", str(_FOLDER / f"{module}.ko")], check=True)


def have_own() -> None:
    """Put the kernel's own KVM back."""
    if not loaded("kvm_thin"):
        return
    for core in _names().values():
        _unload(f"kvm_core_{core}")
    _unload("kvm_thin")
    for module in reversed(_OWN):
        path = next(Path("/modules").glob(f"*-{module.replace('_', '-')}.ko"))
        subprocess.run(["insmod", str(path)], check=True)


def reload(core: str) -> str:
    """Unload a core and load it again. Returns why that is not possible."""
    try:
        _unload(f"kvm_core_{_names()[core]}")
    except RuntimeError as error:
        return str(error)
    subprocess.run(["insmod", str(_FOLDER / f"core_{core.lower()}.ko")], check=True)
    return ""


def node(core: str) -> str:
    """The node of the core ``A`` or ``B``; without one that of the kernel's own KVM."""
    return f"/dev/kvm-{_names()[core]}" if core else "/dev/kvm"


def _unload(module: str) -> None:
    """Wait for it, too: what a process that has ended held, the kernel lets go of later. Raises ``RuntimeError``."""
    deadline = time.monotonic() + _LET_GO_S
    while True:
        done = subprocess.run(["rmmod", module], capture_output=True, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{module} cannot be unloaded: {done.stderr.strip()}; it is used by {_users() or 'no process'}"
            )
        time.sleep(0.2)


def _users() -> str:
    """The processes that hold a VM or a node of KVM."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = {os.readlink(link) for link in folder.iterdir()}
        except OSError:
            continue  # it has ended meanwhile
        if held := sorted(link for link in links if "kvm" in link):
            found.append(f"{folder.parent.name} ({', '.join(held)})")
    return "; ".join(found)


def _names() -> dict[str, str]:
    return dict(json.loads((_FOLDER / "names.json").read_text()))
