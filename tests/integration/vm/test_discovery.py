# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery against real QEMUs: what is found, what is told, and that one wedged VM costs nobody else anything."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.users import users_of_kvm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover, discover_one, name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.elf import identify
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.locked_memory import locked_memory
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory, marked_copy

BUILD_ID = "qemu-11.1.1-00000000000000aa"


@pytest.fixture
def start(tmp_path: Path, qemu_new: Path) -> Iterator[QemuFactory]:
    """Like ``start_qemu``, under TCG: these guests need not get far."""
    factory = QemuFactory(tmp_path, qemu_new, "tcg")
    yield factory
    factory.close()


def look(qemu: LocalQemu) -> Vm:
    """The facts of this VM alone."""
    vm = discover_one(qemu.pid)
    assert vm is not None
    return vm


def transfer_reasons(vm: Vm) -> str:
    assert vm.mechanisms["cpr-transfer"].possible is False
    return "; ".join(vm.mechanisms["cpr-transfer"].reasons)


def test_tells_what_a_vm_is_and_has(start: QemuFactory, qemu_new: Path) -> None:
    qemu = start(
        "web1",
        machine="pc-q35-11.1",
        extra=["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"],
    )

    vm = look(qemu)

    assert (vm.name, vm.pid, vm.exe, vm.exe_deleted) == ("web1", qemu.pid, str(qemu_new), False)
    assert (vm.version, vm.machine_type, vm.accelerator, vm.kvm_device) == (
        "11.1.1",
        "pc-q35-11.1",
        "tcg",
        None,
    )
    assert (vm.status, vm.migration_status, vm.stopped) == ("running", "none", False)
    assert [(endpoint.path, endpoint.state) for endpoint in vm.qmp_endpoints] == [(qemu.qmp_path, "ok")]
    main = next(block for block in vm.ram_blocks if block.id == "ram0")
    assert (main.size_bytes, main.shared, main.backing, main.backend) == (64 << 20, True, "memfd", True)
    assert all(block.shared for block in vm.ram_blocks)
    assert [(disk.id, disk.format, disk.read_only, disk.files) for disk in vm.disks] == [
        ("boot", "raw", False, [str(qemu.disk_path)])
    ]
    assert [(nic.id, nic.backend, nic.model, nic.mac) for nic in vm.nics] == [
        ("n0", "user", "virtio-net-pci", "52:54:00:00:00:01")
    ]
    assert (vm.hotplugged, vm.passthrough, vm.vfio, vm.problems) == ([], [], None, [])
    assert vm.locked_memory == locked_memory(qemu.pid)
    assert vm.mechanisms["cpr-transfer"].possible is True


def test_users_of_kvm_are_vms_with_their_names(start_qemu: QemuFactory, accel: str) -> None:
    """On a machine without KVM nobody uses it."""
    qemu = start_qemu("web1")

    names = {process.user.pid: process.user.vm for process in users_of_kvm(Path("/"), name_of)}

    assert names.get(qemu.pid) == ("web1" if accel == "kvm" else None)


def test_foreign_binary_has_no_build_id_but_the_linkers(start: QemuFactory, qemu_new: Path) -> None:
    vm = look(start())

    if identify(str(qemu_new)).build_id is None:
        assert vm.build_id is None
    assert vm.gnu_build_id == identify(str(qemu_new)).gnu_build_id is not None


def test_deleted_binary_still_tells_its_build(start: QemuFactory, qemu_new: Path, tmp_path: Path) -> None:
    binary = marked_copy(qemu_new, tmp_path / "qemu-system-x86_64", BUILD_ID)
    qemu = start(binary=binary, like=qemu_new)
    binary.unlink()

    vm = look(qemu)

    assert (vm.exe, vm.exe_deleted, vm.build_id) == (str(binary), True, BUILD_ID)
    assert vm.status == "running"


def test_renamed_binary_is_found(start: QemuFactory, qemu_new: Path, tmp_path: Path) -> None:
    binary = tmp_path / "hypervisor"
    shutil.copy(qemu_new, binary)
    qemu = start(binary=binary, like=qemu_new)

    assert qemu.pid in {vm.pid for vm in discover()}


def test_vm_without_a_name_is_called_by_its_pid(start: QemuFactory) -> None:
    qemu = start(extra=["-name", "debug-threads=off,guest="])

    assert look(qemu).name == f"pid-{qemu.pid}"


@pytest.mark.parametrize(
    "options,words",
    [
        pytest.param({"shared_ram": False}, "guest memory is private to the process: pc.ram", id="private-ram"),
        pytest.param(
            {"aux_ram_share": False}, "memory that QEMU allocates by itself is private", id="no-aux-ram-share"
        ),
        pytest.param({"extra": ["-S"]}, "the VM is not running (state prelaunch)", id="not-started"),
        pytest.param({"extra": ["-incoming", "defer"]}, "one side of a migration (state inmigrate)", id="incoming"),
        pytest.param({"extra": ["-gdb", "unix:{dir}/gdb,server=on,wait=off"]}, "-gdb unix:", id="gdb"),
        pytest.param(
            {"extra": ["-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000e,netdev=n0"]},
            "hostfwd",
            id="hostfwd",
        ),
    ],
)
def test_says_why_a_vm_cannot_be_moved(start: QemuFactory, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if "extra" in options:
        options = {**options, "extra": [word.format(dir=tmp_path) for word in options["extra"]]}

    assert words in transfer_reasons(look(start(**options)))


def test_paused_vm(start: QemuFactory) -> None:
    qemu = start()
    qemu.execute("stop")

    assert "state paused" in transfer_reasons(look(qemu))


def test_vnc_listener(start: QemuFactory, tmp_path: Path) -> None:
    assert "-vnc unix:" in transfer_reasons(look(start(extra=["-vnc", f"unix:{tmp_path}/vnc.sock"])))


def test_wedged_vms_cost_only_their_own_facts(start: QemuFactory) -> None:
    well, held, stopped, mute = start("well"), start("held"), start("stopped"), start("mute")
    Path(mute.qmp_path).unlink()
    stopped.suspend()
    with QmpClient.connect(held.qmp_path):
        vms = {vm.pid: vm for vm in discover()}

    assert vms[well.pid].status == "running"
    assert [vms[qemu.pid].qmp_endpoints[0].state for qemu in (held, stopped, mute)] == ["busy", "busy", "dead"]
    assert [vms[qemu.pid].status for qemu in (held, stopped, mute)] == [None, None, None]
    assert vms[stopped.pid].stopped is True
    assert "stopped by a signal" in transfer_reasons(vms[stopped.pid])
    # What the kernel knows is known all the same.
    assert [block.shared for block in vms[stopped.pid].ram_blocks] == [True]
    assert vms[held.pid].disks[0].files == [str(held.disk_path)]


def test_second_monitor_is_asked_when_the_first_is_held(start: QemuFactory, tmp_path: Path) -> None:
    second = f"{tmp_path}/second.sock"
    qemu = start(extra=["-qmp", f"unix:{second},server=on,wait=off"])
    with QmpClient.connect(qemu.qmp_path):
        vm = look(qemu)

    assert [(endpoint.path, endpoint.state) for endpoint in vm.qmp_endpoints] == [
        (qemu.qmp_path, "busy"),
        (second, "ok"),
    ]
    assert vm.status == "running"


def test_listener_passed_as_a_descriptor_is_found_by_its_inode(start: QemuFactory, tmp_path: Path) -> None:
    path = f"{tmp_path}/passed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        number = listener.fileno()
        qemu = start(
            qmp=["-chardev", f"socket,id=m0,fd={number},server=on,wait=off", "-mon", "chardev=m0,mode=control"],
            pass_fds=[number],
        )

        vm = look(qemu)

    assert [(endpoint.path, endpoint.state) for endpoint in vm.qmp_endpoints] == [(path, "ok")]
    assert vm.status == "running"


def test_monitors_of_other_kinds_are_told_but_not_used(start: QemuFactory, tmp_path: Path) -> None:
    hmp = f"unix:{tmp_path}/hmp.sock,server=on,wait=off"
    qemu = start(qmp=["-qmp", "tcp:127.0.0.1:0,server=on,wait=off", "-monitor", hmp])

    vm = look(qemu)

    assert vm.qmp_endpoints == []
    assert vm.other_monitors == ["qmp tcp:127.0.0.1:0,server=on,wait=off", f"hmp socket:{tmp_path}/hmp.sock"]
    assert "no QMP monitor on a UNIX socket" in transfer_reasons(vm)


def test_monitor_in_another_mount_namespace(start: QemuFactory, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = f'mount -t tmpfs none {hidden} && exec "$@"'
    qemu = start(
        qmp=["-qmp", f"unix:{hidden}/qmp.sock,server=on,wait=off"],
        wrapper=["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"],
    )

    assert not (hidden / "qmp.sock").exists()
    assert look(qemu).status == "running"


def test_what_was_plugged_in_later_is_told(start: QemuFactory) -> None:
    qemu = start(machine="pc-i440fx-11.1")
    with qemu.monitor() as qmp:
        qmp.execute("object-add", {"qom-type": "rng-random", "id": "rng1", "filename": "/dev/urandom"})
        qmp.execute("device_add", {"driver": "virtio-rng-pci", "id": "plugged", "rng": "rng1"})
        qmp.execute("netdev_add", {"type": "user", "id": "n9"})
        qmp.execute("chardev-add", {"id": "c9", "backend": {"type": "null", "data": {}}})
        qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "b9", "read-zeroes": True})

    found = {(item.kind, item.id, item.type) for item in look(qemu).hotplugged}

    assert found == {
        ("object", "rng1", "rng-random"),
        ("device", "plugged", "virtio-rng-pci"),
        ("netdev", "n9", "user"),
        ("chardev", "c9", "null"),
        ("blockdev", "b9", "null-co"),
    }


def test_helper_process_of_a_vm_is_no_vm(start: QemuFactory) -> None:
    qemu = start("reaped", extra=["-run-with", "async-teardown=on"])

    assert [vm.pid for vm in discover() if vm.name == "reaped"] == [qemu.pid]


def test_probe_without_a_machine_is_no_vm(qemu_new: Path) -> None:
    """As management tools start them to learn what a QEMU can do."""
    command = [str(qemu_new), "-S", "-nodefaults", "-display", "none", "-machine", "none", "-qmp", "stdio"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        assert probe.stdout is not None
        assert b"QMP" in probe.stdout.readline()
        assert probe.pid not in {vm.pid for vm in discover()}
        probe.kill()


def test_process_that_merely_names_qemu_is_no_vm() -> None:
    with subprocess.Popen(["qemu-system-x86_64", "60"], executable="/bin/sleep") as process:
        assert discover_one(process.pid) is None
        process.kill()
    assert discover_one(process.pid) is None


def test_namesakes_are_pointed_out(start: QemuFactory, tmp_path: Path, qemu_new: Path) -> None:
    first, second = start("first", extra=["-name", "twin"]), start("second", extra=["-name", "twin"])

    problems = {vm.pid: vm.problems for vm in discover() if vm.name == "twin"}

    assert problems[first.pid] == [f"another process bears the same name: {second.pid}"]
