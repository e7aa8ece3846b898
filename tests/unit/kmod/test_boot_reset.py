# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is reset while its choice for the next boot changes has KVM all the same: chosen cores, or the kernel's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod import boot
from ansible_collections.vmm.live_upgrade.tests.unit.kmod.conftest import RELEASE, Host, build_id

BLACKLIST = "etc/modprobe.d/vmm-kvm-cores.conf"
CHOICE = f"etc/vmm-live-upgrade/kvm-cores/{RELEASE}"
LOADS = (
    "usr/local/lib/vmm-live-upgrade/load-kvm-cores",
    "etc/systemd/system/vmm-kvm-cores.service",
    "etc/systemd/system/sysinit.target.wants/vmm-kvm-cores.service",
)
FILES = 6


class Reset(BaseException):
    """The button was pressed."""


def reset_after(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written any more once so many files were changed."""
    write, left = boot._write, [files]

    def counting(path: Path, file: object) -> None:
        if not left[0]:
            raise Reset
        left[0] -= 1
        write(path, file)  # type: ignore[arg-type]

    monkeypatch.setattr(boot, "_write", counting)


def has_kvm(root: Path) -> bool:
    """Udev loads the kernel's own KVM unless it is on the blacklist; then the unit has to be there."""
    return not (root / BLACKLIST).exists() or all(os.path.lexists(root / path) for path in LOADS)


@pytest.mark.parametrize("files", range(FILES))
def test_first_choice(host: Host, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reset_after(files, monkeypatch)
    with pytest.raises(Reset):
        host.boot.set([build_id(1)])
    assert has_kvm(host.root)

    monkeypatch.undo()
    host.boot.set([build_id(1)])
    assert host.boot.complete([build_id(1)]) and has_kvm(host.root)


@pytest.mark.parametrize("files", range(FILES))
def test_last_choice_taken_off(host: Host, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host.boot.set([build_id(1)])
    reset_after(files, monkeypatch)
    with pytest.raises(Reset):
        host.boot.set([])
    assert has_kvm(host.root)

    monkeypatch.undo()
    host.boot.set([])
    assert host.boot.complete([]) and not any(os.path.lexists(host.root / path) for path in (BLACKLIST, CHOICE, *LOADS))
    assert not (host.root / CHOICE).parent.parent.exists(), "nor an empty folder"


def test_each_file_is_on_the_disk_before_the_next_is_changed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(fd: int) -> None:
        done.append(f"sync {os.readlink(f'/proc/self/fd/{fd}')}")
        fsync(fd)

    def seen_replace(source: Path, target: Path) -> None:
        done.append(f"rename {source} {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)

    host.boot.set([build_id(1)])

    renames = [index for index, what in enumerate(done) if what.startswith("rename ")]
    assert len(renames) == FILES
    for index in renames:
        _rename, source, target = done[index].split()
        if not os.path.islink(target):
            assert done[index - 1] == f"sync {source}"
        assert done[index + 1] == f"sync {Path(target).parent}"
