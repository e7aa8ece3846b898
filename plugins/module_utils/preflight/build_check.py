# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a staged build is and can: intact, new enough, with the machine types and devices that VMs have.

PRIVATE to the collection.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import StagedBuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.devices import device_options, fields_of, named
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.mechanisms import (
    OLDEST_CPR,
    OLDEST_CPR_VFIO,
    has_vfio,
)

_ANSWER_S = 30
_CHUNK_BYTES = 1 << 20
_DEVICE_LINE = re.compile(r'^name "([^"]+)"(?:.*\balias "([^"]+)")?', re.M)
_CHARDEV_ALIASES = {"tty": "serial", "parport": "parallel"}


class Build:
    """A staged build, questioned once for all VMs of the host."""

    def __init__(self, staged: StagedBuild) -> None:
        """Read what the build offers. Raises ``LiveUpgradeError`` when it is damaged or does not run here."""
        self.staged = staged
        self.version = tuple(int(part) for part in staged.manifest.version.split("."))
        _verify(staged)
        self._binary = staged.path / "bin" / "qemu-system-x86_64"
        self._offers = {
            "device": {name for pair in _DEVICE_LINE.findall(self._help("-device")) for name in pair if name},
            "object": _words(self._help("-object")),
            "netdev": _words(self._help("-netdev")),
            "chardev": _words(self._help("-chardev")),
            "accel": _words(self._help("-accel")),
        }
        self._has_sandbox = self._run("-sandbox", "on", "-version").returncode == 0

    @property
    def hands_over_devices(self) -> bool:
        """Whether it takes over, and hands on, VFIO devices by the mode cpr-vfork."""
        return "cpr-vfork-devices" in self.staged.manifest.capabilities

    def check(self, verdict: Verdict, vm: Vm, options: list[Option]) -> None:
        """Refuse ``vm`` for what the build lacks."""
        if self.version[:2] < OLDEST_CPR:
            verdict.refuse(
                "build-too-old", f"the build is QEMU {self.staged.manifest.version}; 10.2 is the oldest that can"
            )
        if has_vfio(vm) and self.version[:2] < OLDEST_CPR_VFIO and not self.hands_over_devices:
            message = f"the build is QEMU {self.staged.manifest.version} without our mode for VFIO devices"
            verdict.warn("vfio-one-way", f"{message}: from there the VM can be moved on at a risk only")
        if vm.machine_type and vm.machine_type not in self.staged.manifest.machine_types:
            verdict.refuse("machine-missing", f"the build has no machine type {vm.machine_type}")
        missing = sorted(f"{kind} {name}" for kind, name in _needs(vm, options) if name not in self._offers[kind])
        if missing:
            verdict.refuse("device-missing", f"the build lacks: {', '.join(missing)}")
        if not self._has_sandbox and any(
            fields_of(o, "enable").get("enable") == "on" for o in named(options, "sandbox")
        ):
            verdict.refuse("device-missing", "the build was made without seccomp and does not know -sandbox")

    def _help(self, option: str) -> str:
        done = self._run(option, "help")
        if done.returncode:
            raise LiveUpgradeError(
                f"the staged build {self.staged.path} does not run on this host: {done.stderr.strip()[-300:]}; "
                "install what it needs, or stage a build made for this host"
            )
        return done.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [str(self._binary), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise LiveUpgradeError(f"the staged build {self.staged.path} does not run on this host: {exc}") from exc


def _verify(staged: StagedBuild) -> None:
    """Raise ``LiveUpgradeError`` when a file of the build is not what its manifest says."""
    for name, expected in sorted(staged.manifest.files.items()):
        try:
            actual = _sha256(staged.path / name)
        except OSError as exc:
            raise LiveUpgradeError(
                f"the staged build {staged.path} is damaged: {name}: {exc.strerror}; stage it anew"
            ) from exc
        if actual != expected:
            raise LiveUpgradeError(f"the staged build {staged.path} is damaged: {name} was changed; stage it anew")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _needs(vm: Vm, options: list[Option]) -> Iterable[tuple[str, str]]:
    for fields in device_options(options):
        yield "device", fields.get("driver", "")
    for item in vm.hotplugged:
        if item.kind in ("device", "object"):
            yield item.kind, item.type
    for option in named(options, "object"):
        yield "object", fields_of(option, "qom-type").get("qom-type", "")
    for nic in vm.nics:
        yield "netdev", nic.backend
    for option in named(options, "chardev"):
        backend = fields_of(option, "backend").get("backend", "")
        yield "chardev", _CHARDEV_ALIASES.get(backend, backend)
    if vm.accelerator:
        yield "accel", vm.accelerator


def _words(text: str) -> set[str]:
    """The lists of ``help`` have one name a line, below a headline."""
    return {line.split()[0] for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":")}
