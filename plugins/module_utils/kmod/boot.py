# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host loads when it boots: the cores chosen for the kernel that comes up, else the kernel's own KVM.

The kernel's own KVM is kept from being loaded by its aliases, for every kernel; a unit of systemd loads either. So a kernel
for which no core was chosen, or whose cores do not load, has KVM as ever. PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.nodes import RULE, RULE_NAME, reload_udev
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore, StagedKvm

_CHOICES = "etc/vmm-live-upgrade/kvm-cores"
_SCRIPT = "usr/local/lib/vmm-live-upgrade/load-kvm-cores"
_UNIT = "vmm-kvm-cores.service"
_BLACKLIST = "etc/modprobe.d/vmm-kvm-cores.conf"

_BLACKLIST_TEXT = f"""\
# Made by vmm.live_upgrade (kvm_core). {_UNIT} loads either KVM cores or these.
blacklist kvm
blacklist kvm_amd
blacklist kvm_intel
"""

_UNIT_TEXT = f"""\
# Made by vmm.live_upgrade (kvm_core).
[Unit]
Description=KVM: the cores chosen for this kernel, else its own
DefaultDependencies=no
After=local-fs.target systemd-modules-load.service systemd-udevd.service
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
RequiresMountsFor=%s

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/{_SCRIPT}

[Install]
WantedBy=sysinit.target
"""

_SCRIPT_TEXT = f"""\
#!/bin/sh
# Made by vmm.live_upgrade (kvm_core): loads the KVM cores chosen for the kernel that runs, else the kernel's own KVM.
# The file of a kernel has lines "thin FILE" and "core FILE", the default first.
choice="/{_CHOICES}/$(uname -r)"

own() {{
    echo "$1: loading the kernel's own KVM"
    if grep -qw svm /proc/cpuinfo; then modprobe kvm_amd; else modprobe kvm_intel; fi
}}

load() {{
    for needed in $(modinfo -F depends "$1" | tr , ' '); do
        [ "$needed" = kvm_thin ] || modprobe "$needed" || return 1
    done
    insmod "$1"
}}

if [ ! -s "$choice" ]; then
    own "no core was chosen for $(uname -r)"
    exit
fi
loaded=0 failed=0
while read -r kind file; do
    if load "$file"; then
        [ "$kind" = thin ] || loaded=$((loaded + 1))
    else
        failed=1
    fi
done < "$choice"
if [ "$loaded" = 0 ]; then
    ! grep -q '^kvm_thin ' /proc/modules || rmmod kvm_thin
    own "no core could be loaded"
    failed=1 # the host has KVM, and who looks at its units sees that it is not the one that was chosen
fi
exit "$failed"
"""


@dataclass(frozen=True)
class _File:
    """A file as it should be: its text, or where it leads as a link; neither when it should not be there."""

    text: str | None = None
    mode: int = 0o644
    link: str | None = None


class BootChoice:
    """The cores that the kernel ``store`` is for loads at boot, on the host whose files are below ``root``."""

    def __init__(self, store: KvmStore, root: Path = Path("/")) -> None:
        self._store = store
        self._root = root
        self._file = root / _CHOICES / store.folder.name

    def builds(self) -> list[str]:
        """Return the build ids, the default first."""
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Path(line.partition(" ")[2]).parent.name for line in lines if line.startswith("core ")]

    def complete(self, builds: list[str]) -> bool:
        """Tell whether everything on the host is as it has to be to boot with ``builds``."""
        return all(_read(self._root / path) == file for path, file in self._wanted(builds).items())

    def set(self, builds: list[str]) -> None:
        """Have ``builds`` loaded at boot, with none things as they were; all or nothing. Raises ``LiveUpgradeError``."""
        wanted = self._wanted(builds)
        before: dict[str, _File] = {}
        try:
            before = {path: _read(self._root / path) for path in wanted}
            for path, file in wanted.items():
                _write(self._root / path, file)
        except OSError as exc:
            with contextlib.suppress(OSError):
                for path, file in before.items():
                    _write(self._root / path, file)
            raise LiveUpgradeError(f"{exc.filename} cannot be written: {exc.strerror}") from exc
        if not builds:
            with contextlib.suppress(OSError):  # there are choices for other kernels, or other things of ours
                self._file.parent.rmdir()
                self._file.parent.parent.rmdir()
        self._tell()

    def check(self) -> None:
        """Raise ``LiveUpgradeError`` on a host without what loads cores at boot."""
        if not (self._root / "run/systemd/system").is_dir():
            raise LiveUpgradeError(
                "cores are loaded at boot by systemd, which does not run this host: leave persist out"
            )

    def _wanted(self, builds: list[str]) -> dict[str, _File]:
        files = {f"{_CHOICES}/{self._store.folder.name}": _File(self._choice(builds)) if builds else _File()}
        link = f"etc/systemd/system/sysinit.target.wants/{_UNIT}"
        common = {
            f"etc/udev/rules.d/{RULE_NAME}": _File(RULE),
            _SCRIPT: _File(_SCRIPT_TEXT, 0o755),
            f"etc/systemd/system/{_UNIT}": _File(_UNIT_TEXT % self._store.folder.parent.parent),
            link: _File(link=f"/etc/systemd/system/{_UNIT}"),
            # last: without the unit the host would have no KVM
            _BLACKLIST: _File(_BLACKLIST_TEXT),
        }
        if builds or self._others():
            return {**files, **common}
        return {**{path: _File() for path in reversed(common)}, **files}

    def _choice(self, builds: list[str]) -> str:
        staged = [self._store.get(build_id) for build_id in builds]
        thin = max(staged, key=_abi)
        return "".join([f"thin {thin.thin}\n", *(f"core {build.core}\n" for build in staged)])

    def _others(self) -> bool:
        """Tell whether cores were chosen for other kernels of this host."""
        folder = self._file.parent
        return folder.is_dir() and any(path != self._file for path in folder.iterdir())

    def _tell(self) -> None:
        if self._root == Path("/"):
            reload_udev()
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(
                    ["systemctl", "daemon-reload"], stdin=subprocess.DEVNULL, capture_output=True, check=False
                )


def _abi(build: StagedKvm) -> int:
    return build.manifest.thin_abi


def _read(path: Path) -> _File:
    if path.is_symlink():
        return _File(link=os.readlink(path))
    try:
        return _File(path.read_text(), path.stat().st_mode & 0o777)
    except FileNotFoundError:
        return _File()


def _write(path: Path, file: _File) -> None:
    """Have the file so, by one rename, on the disk: the host may be reset before anything else is written there."""
    if file.text is None and file.link is None:
        if path.is_symlink() or path.exists():
            path.unlink()
            _sync(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    if file.link is not None:
        os.symlink(file.link, temporary)
    else:
        temporary.write_text(file.text or "")
        temporary.chmod(file.mode)
        _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
