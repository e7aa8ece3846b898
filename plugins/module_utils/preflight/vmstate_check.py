# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Would device state that one build saves load in the other? Compared are the builds' own descriptions.

Only what the VM has is compared: builds differ in devices that nobody uses more often than not. PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore, StagedBuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.vmstate import compare
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import (
    Direction,
    PreflightRequest,
    Verdict,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm

_DUMP_S = 20
_MACHINE_SECTION = "vmschkmachine"
_FINDINGS_SHOWN = 10

Dump = dict[str, Any]


class DumpError(LiveUpgradeError):
    """A build's description of its device state cannot be had."""


def check_vmstate(
    verdict: Verdict, request: PreflightRequest, vm: Vm, store: BuildStore, staged: StagedBuild, types: set[str]
) -> None:
    """Fill ``forward`` and ``backward`` and draw the conclusions. ``types``: the QOM types that the VM has."""
    machine = vm.machine_type or ""
    try:
        new = _staged_dump(staged.path, machine)
        old = _running_dump(vm, store, machine)
    except DumpError as exc:
        say = verdict.refuse if request.require_vmstate_check else verdict.warn
        say("vmstate-unknown", str(exc))
        return
    old, new = _narrowed(old, types), _narrowed(new, types)
    verdict.forward = _direction(old, new)
    verdict.backward = _direction(new, old)
    if not verdict.forward.compatible:
        verdict.refuse("vmstate-forward", f"the new build would not load this VM: {_shown(verdict.forward)}")
    if not verdict.backward.compatible:
        say = verdict.refuse if request.require_way_back else verdict.warn
        say("vmstate-backward", f"the build it runs now would not take the VM back: {_shown(verdict.backward)}")


def dump_of_process(vm: Vm, machine: str) -> Dump:
    """Let the very binary that ``vm`` runs, deleted or not, describe its device state. Raises ``DumpError``.

    It runs as the VM's user in an empty directory, without a guest, a network, a display or a configuration file.
    """
    try:
        exe_fd = os.open(f"/proc/{vm.pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise DumpError(f"the binary that the VM runs cannot be opened: {exc.strerror}") from exc
    try:
        errors = []
        for accelerator in ("tcg", "kvm"):
            with tempfile.TemporaryDirectory(prefix="vmm-vmstate-") as directory:
                os.chown(directory, vm.uid, vm.gid)
                try:
                    return _run_dump(vm, exe_fd, Path(directory), ["-machine", machine, "-accel", accelerator])
                except (OSError, subprocess.SubprocessError, DumpError) as exc:
                    errors.append(str(exc))
    finally:
        os.close(exe_fd)
    raise DumpError(f"the binary that the VM runs does not describe its device state: {'; '.join(errors)}")


def _run_dump(vm: Vm, exe_fd: int, directory: Path, machine: list[str]) -> Dump:
    target = directory / "vmstate.json"
    as_root = os.geteuid() == 0
    done = subprocess.run(
        [vm.argv[0], "-nodefaults", "-no-user-config", "-display", "none", *machine, "-dump-vmstate", str(target)],
        executable=f"/proc/self/fd/{exe_fd}",
        pass_fds=[exe_fd],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_DUMP_S,
        check=False,
        user=vm.uid if as_root else None,
        group=vm.gid if as_root else None,
        extra_groups=[] if as_root else None,
    )
    if done.returncode or not target.exists():
        raise DumpError(done.stderr.strip()[-200:] or f"it ended with status {done.returncode}")
    return _load(target)


def _staged_dump(build: Path, machine: str) -> Dump:
    path = build / "vmstate" / f"{machine}.json"
    if os.path.basename(machine) != machine or not path.is_file():
        raise DumpError(f"the staged build {build.name} has no description of machine type {machine!r}")
    return _load(path)


def _running_dump(vm: Vm, store: BuildStore, machine: str) -> Dump:
    """From the store when the build is there, else from the process's own binary."""
    if vm.build_id:
        for staged in store.list():
            if staged.manifest.build_id == vm.build_id and (staged.path / "vmstate" / f"{machine}.json").is_file():
                return _staged_dump(staged.path, machine)
    return dump_of_process(vm, machine)


def _load(path: Path) -> Dump:
    try:
        dump = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise DumpError(f"{path.name} cannot be read: {exc}") from exc
    if not isinstance(dump, dict):
        raise DumpError(f"{path.name} does not describe device state")
    return dump


def _narrowed(dump: Dump, types: set[str]) -> Dump:
    return {name: section for name, section in dump.items() if name == _MACHINE_SECTION or name in types}


def _direction(source: Dump, target: Dump) -> Direction:
    findings = [str(incompatibility) for incompatibility in compare(source, target)]
    return Direction(not findings, findings)


def _shown(direction: Direction) -> str:
    more = len(direction.findings) - _FINDINGS_SHOWN
    return "; ".join(direction.findings[:_FINDINGS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
