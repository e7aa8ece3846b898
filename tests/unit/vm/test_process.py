# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes are VMs, what their unit is called, and what their descriptors are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import process


@pytest.mark.parametrize(
    "exe,argv,expected",
    [
        ("/usr/bin/qemu-system-x86_64", ["qemu"], True),
        ("/usr/bin/qemu-system-x86_64 (deleted)", ["qemu"], True),
        ("/usr/libexec/qemu-kvm", ["qemu-kvm"], True),
        ("/opt/vmm", ["/usr/bin/qemu-system-aarch64"], True),
        ("/opt/vmm", ["vmm", "-machine", "q35"], True),
        ("/opt/vmm", ["vmm", "--accel", "kvm"], True),
        ("/usr/bin/qemu-img", ["qemu-img", "convert"], False),
        ("/usr/bin/bash", ["bash"], False),
    ],
)
def test_candidates(exe: str, argv: list[str], expected: bool) -> None:
    assert process._may_be_qemu(exe, argv) is expected


@pytest.mark.parametrize(
    "words,expected",
    [
        (["--version"], True),
        (["-machine", "help"], True),
        (["-device", "virtio-net-pci,help"], False),
        (["-M", "none", "-qmp", "stdio"], True),
        (["-machine", "none,accel=kvm:tcg"], True),
        (["-machine", "q35", "-dump-vmstate", "x"], True),
        (["-machine", "q35", "-display", "none"], False),
        ([], False),
    ],
)
def test_processes_of_qemu_that_run_no_vm(words: list[str], expected: bool) -> None:
    assert process._runs_no_vm(["qemu-system-x86_64", *words]) is expected


@pytest.mark.parametrize(
    "cgroup,unit,instance",
    [
        ("/system.slice/system-vmm.slice/vmm@web-1.service", "vmm@web-1.service", "web-1"),
        ("/system.slice/vmm@web\\x2d1.service/emulator", "vmm@web\\x2d1.service", "web-1"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator", "machine-qemu\\x2d1\\x2dweb.scope", None),
        ("/user.slice", None, None),
        ("/", None, None),
        (None, None, None),
    ],
)
def test_unit_and_instance(cgroup: str | None, unit: str | None, instance: str | None) -> None:
    assert process._unit(cgroup) == unit
    assert process.unit_instance(unit) == instance


def test_listener_is_told_by_its_inode_and_a_connection_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "l.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        assert process.listener_path(os.getpid(), listener.fileno()) is None
        listener.listen()
        client.connect(path)
        served = listener.accept()[0]
        try:
            assert process.listener_path(os.getpid(), listener.fileno()) == path
            assert process.listener_path(os.getpid(), served.fileno()) is None
        finally:
            served.close()
    assert process.listener_path(os.getpid(), 9999) is None


def test_own_mappings_and_descriptors() -> None:
    with open(__file__, "rb") as stream:
        links = process.descriptors(os.getpid())
        assert links[stream.fileno()] == os.path.realpath(__file__)
        assert process.descriptor_info(os.getpid(), stream.fileno())["pos"] == "0"
    found = process.mappings(os.getpid())
    assert any(mapping.path == "[stack]" and not mapping.shared for mapping in found)
    assert process.kvm_descriptor(os.getpid(), links) is None


def test_this_process_is_no_vm() -> None:
    assert process.read_process(os.getpid()) is None
