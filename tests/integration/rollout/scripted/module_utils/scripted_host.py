# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host in a JSON file, for tests of the rollout's control flow alone. It upgrades nothing; that is tested on real QEMU.

``<state_dir>/host.json``: ``vms``: name → ``build``, ``downtime_ms`` and optionally ``outcome`` (what its upgrade comes to),
``refuse`` (why preflight refuses it), ``sick_on`` (builds on which it is unhealthy), ``sick_from`` (the number of the look at
the host from which on it is unhealthy); ``default``: the default build; ``calls``: what was called so far; ``budgets_ms``: what
each upgrade was given of class budgets, ``vfio_risks``: and whether that of VFIO devices is accepted; ``wait_on``: a FIFO that
``vm_upgrade`` reads before it starts; ``blind_from``: the number of the look from which on ``vm_health`` fails; ``dies``:
whether the next ``vm_upgrade`` is killed after it began. A host with ``cores``: which KVM cores are loaded, name of the build →
whether it is the default; each of its VMs has ``kvm``, the core it is on, and optionally ``sick_on`` names one. ``trials``:
those that a rollout has loaded and not settled. ``held``: cores that cannot be unloaded, name of the build → why. ``no_load``,
``no_default``: why those fail. ``warnings`` of a VM: what preflight warns of; ``monitors``: what ``vm_health`` tells of them.
``no_answer``: why preflight fails. ``told``: what upgrades of a rollout came to. ``leases``: by which token of a lease each
change was asked for, name of the module → tokens, null where there was none.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def opened(state_dir: str, call: str) -> Iterator[dict[str, Any]]:
    """Yield the host's data and write it back."""
    with open(os.path.join(state_dir, "host.json"), "r+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        host = json.load(stream)
        host.setdefault("calls", []).append(call)
        yield host
        stream.seek(0)
        stream.truncate()
        json.dump(host, stream)


def note_lease(host: dict[str, Any], module: str, lease: dict[str, Any] | None) -> None:
    """Remember by what right something is changed."""
    host.setdefault("leases", {}).setdefault(module, []).append(int(lease["token"]) if lease else None)


def chosen(host: dict[str, Any], wanted: list[str]) -> dict[str, dict[str, Any]]:
    """Return the VMs a call is about."""
    return {name: vm for name, vm in host["vms"].items() if not wanted or name in wanted}


def is_missing(host: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a core was asked for that is not loaded, by one who does not say that it will be."""
    return bool(asked["kvm_build_id"]) and asked["kvm_build_id"] not in host["cores"] and not asked["kvm_load_later"]


def is_there(vm: dict[str, Any], build_id: str, kvm_build_id: str | None) -> bool:
    """Whether a VM is where it shall go."""
    return vm["build"] == build_id and kvm_build_id in (None, vm.get("kvm"))
