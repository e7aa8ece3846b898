# SPDX-License-Identifier: GPL-3.0-or-later
"""A command line made anew for VMs that have changed since their start: the guest moves with what it has now, or is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.vm_upgrade import VmUpgrade
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover_one
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.recreate import CommandPlan, plan_command
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory

MACHINE = "pc-q35-10.2"
PORTS = [word for n in range(1, 5) for word in ("-device", f"pcie-root-port,id=rp{n},slot={n},chassis={n}")]
BUILD = "qemu-0.0.0-0000000000000000"


class World:
    """One VM and the builds it is moved between."""

    def __init__(self, vm: LocalQemu, directory: Path, mechanism: str) -> None:
        self.vm = vm
        self.mechanism = mechanism
        self._directory = directory
        self._pid = vm.pid

    def facts(self) -> Vm:
        facts = discover_one(self._pid)
        assert facts is not None
        return facts

    def plan(self, binary: Path) -> CommandPlan:
        facts = self.facts()  # before we hold the monitor ourselves
        with self.vm.monitor() as monitor:
            return plan_command(facts, monitor, _build_of(binary), self.mechanism)

    def move(self, binary: Path) -> VmResult:
        """Move the VM to ``binary``, with the guest counting before and after."""
        self.vm.wait_counting()
        directory = self._directory / uuid.uuid4().hex
        (directory / "logs").mkdir(parents=True)
        run_dir = Path(f"/run/vmm-{uuid.uuid4().hex[:8]}")
        request = UpgradeRequest(BUILD, run_dir=str(run_dir), prepare_timeout_s=60, downtime_budget_ms=20000)
        journal = Journal(directory)
        try:
            result = VmUpgrade(self.facts(), _build_of(binary), self.mechanism, request, directory, journal).run()
        finally:
            journal.close()
            subprocess.run(["rm", "-r", str(run_dir)], check=True)
        assert result.outcome == "upgraded", result.error
        assert result.warnings == []
        self._pid = result.new_pid or 0
        self.vm.wait_counting()
        return result


@pytest.fixture(params=["vfork", "cpr-transfer"])
def world(
    request: pytest.FixtureRequest, start_qemu: QemuFactory, qemu_old: Path, tmp_path: Path
) -> Callable[..., World]:
    """Start a VM that is moved by each mechanism in turn."""

    def start(*extra: str, **options: Any) -> World:
        vm = start_qemu("vm", binary=qemu_old, machine=MACHINE, extra=extra, **options)
        return World(vm, tmp_path, request.param)

    return start


@pytest.fixture
def tap() -> Iterator[str]:
    """A tap that exists for the time of the test."""
    name = f"vmm{os.getpid() % 100000}"
    subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def test_plugged_devices_move_there_and_back(
    world: Callable[..., World], qemu_old: Path, qemu_new: Path, tmp_path: Path, tap: str
) -> None:
    image = tmp_path / "plugged, with comma.img"
    image.write_bytes(bytes(1 << 20))
    it = world(*PORTS, "-device", "virtio-scsi-pci,id=scsi0")
    for command, arguments in (
        ("blockdev-add", {"driver": "file", "node-name": "f1", "filename": str(image), "cache": {"direct": False}}),
        ("blockdev-add", {"driver": "raw", "node-name": "d1", "file": "f1"}),
        ("blockdev-add", {"driver": "null-co", "node-name": "unused", "read-zeroes": True}),
        ("blockdev-del", {"node-name": "unused"}),
        ("object-add", {"qom-type": "iothread", "id": "io1"}),
        ("object-add", {"qom-type": "rng-random", "id": "rng1", "filename": "/dev/urandom"}),
        ("device_add", {"driver": "virtio-rng-pci", "id": "vrng1", "rng": "rng1", "bus": "rp3"}),
        (
            "device_add",
            {"driver": "virtio-blk-pci", "id": "hd1", "drive": "d1", "bus": "rp1", "serial": "abc", "iothread": "io1"},
        ),
        ("netdev_add", {"type": "tap", "id": "n1", "ifname": tap, "script": "no", "downscript": "no"}),
        (
            "device_add",
            {"driver": "virtio-net-pci", "id": "nic1", "netdev": "n1", "bus": "rp2", "mac": "52:54:00:00:00:09"},
        ),
        ("device_add", {"driver": "virtio-scsi-pci", "id": "scsi1", "bus": "rp4"}),
    ):
        it.vm.execute(command, arguments)

    there = it.move(qemu_new)
    facts = it.facts()

    assert facts.hotplugged == [], "what was hot-plugged is on the command line now"
    assert [nic.mac for nic in facts.nics if nic.id == "n1"] == ["52:54:00:00:00:09"]
    assert [nic.interface for nic in facts.nics if nic.id == "n1"] == [tap]
    assert [disk.files for disk in facts.disks if disk.node == "d1"] == [[str(image)]]
    path = "/machine/peripheral/hd1"
    assert it.vm.execute("qom-get", {"path": path, "property": "serial"}) == "abc"
    assert it.vm.execute("qom-get", {"path": path, "property": "iothread"}) == "/objects/io1"
    assert it.vm.execute("qom-get", {"path": path, "property": "parent_bus"}).endswith("/rp1/rp1")

    back = it.move(qemu_old)
    assert back.old_pid == there.new_pid
    assert it.facts().hotplugged == []


def test_memory_and_cpu_plugged_move(world: Callable[..., World], qemu_new: Path) -> None:
    it = world("-m", "64M,slots=2,maxmem=1G", "-smp", "1,maxcpus=2")
    place = next(cpu for cpu in it.vm.execute("query-hotpluggable-cpus") if "qom-path" not in cpu)
    props = {key: value for key, value in place["props"].items() if key != "node-id"}
    it.vm.execute("object-add", {"qom-type": "memory-backend-memfd", "id": "mem1", "size": 128 << 20, "share": True})
    it.vm.execute("device_add", {"driver": "pc-dimm", "id": "dimm1", "memdev": "mem1"})
    it.vm.execute("device_add", {"driver": place["type"], "id": "cpu1", **props})

    it.move(qemu_new)

    (dimm,) = it.vm.execute("query-memory-devices")
    assert (dimm["data"]["id"], dimm["data"]["size"], dimm["data"]["memdev"]) == ("dimm1", 128 << 20, "/objects/mem1")
    assert len(it.vm.execute("query-cpus-fast")) == 2


def test_unplugged_device_leaves_the_others_in_their_places(
    world: Callable[..., World], qemu_new: Path, tmp_path: Path
) -> None:
    """A root port behind it has no address of its own: it would move up, and the migration stream would not fit."""
    it = world(
        *("-device", "pcie-root-port,id=rp1,slot=1,chassis=1"),
        *("-netdev", "user,id=n0", "-device", "virtio-net-pci,id=nic0,netdev=n0,bus=rp1,romfile="),
        *("-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-cd,id=cd1,bus=scsi0.0"),
        *("-device", "pcie-root-port,id=rp2,slot=2,chassis=2"),
    )
    address = it.vm.execute("qom-get", {"path": "/machine/peripheral/rp2", "property": "addr"})
    with it.vm.monitor() as monitor:
        monitor.execute("device_del", {"id": "cd1"})
        monitor.execute("device_del", {"id": "nic0"})
        # This guest does not answer the request to let go of its NIC; a reset lets go of it.
        monitor.execute("system_reset")
        monitor.wait_event({"DEVICE_DELETED"}, 30)
        while "nic0" in str(monitor.execute("qom-list", {"path": "/machine/peripheral"})):
            monitor.wait_event({"DEVICE_DELETED"}, 30)
        monitor.execute("netdev_del", {"id": "n0"})

    plan = it.plan(qemu_new)

    for gone in ("-device nic0", "-device cd1", "-netdev n0"):
        assert f"{gone} is left out: it was removed since the start" in plan.changes
    assert not any("nic0" in word or "cd1" in word or "n0" in word for word in plan.argv)
    (port,) = [word for word in plan.argv if "id=rp2" in word]
    assert f"addr={address >> 3:x}.0" in port
    it.move(qemu_new)


def test_ejected_medium_stays_ejected(world: Callable[..., World], qemu_new: Path, tmp_path: Path) -> None:
    disc = tmp_path / "disc.iso"
    disc.write_bytes(bytes(1 << 16))
    it = world("-drive", f"if=none,id=cd,media=cdrom,file={disc}", "-device", "ide-cd,drive=cd,id=cd0")
    it.vm.execute("eject", {"id": "cd0", "force": True})

    it.move(qemu_new)

    assert "drive cd is empty" not in "".join(it.plan(qemu_new).changes), "the new command line knows already"
    (drive,) = [item for item in it.vm.execute("query-block") if item["device"] == "cd"]
    assert "inserted" not in drive


def _snapshot(it: World, tmp_path: Path) -> None:
    it.vm.execute(
        "blockdev-snapshot-sync", {"device": "boot", "snapshot-file": str(tmp_path / "snap.qcow2"), "format": "qcow2"}
    )


def _change_medium(it: World, tmp_path: Path) -> None:
    other = tmp_path / "other.iso"
    other.write_bytes(bytes(1 << 16))
    it.vm.execute("blockdev-change-medium", {"id": "cd0", "filename": str(other), "format": "raw"})


def _unknown_driver(it: World, tmp_path: Path) -> None:
    it.vm.execute("blockdev-add", {"driver": "null-co", "node-name": "n2", "size": 1 << 20, "read-zeroes": True})


def _snapshot_of_node(it: World, tmp_path: Path) -> None:
    snapshot = {"snapshot-file": str(tmp_path / "snap.qcow2"), "snapshot-node-name": "s1", "format": "qcow2"}
    it.vm.execute("blockdev-snapshot-sync", {"node-name": "d1", **snapshot})


def _job(it: World, tmp_path: Path) -> None:
    it.vm.execute(
        "drive-mirror",
        {"device": "boot", "job-id": "copy", "target": str(tmp_path / "copy.raw"), "format": "raw", "sync": "full"},
    )


def _bitmap(it: World, tmp_path: Path) -> None:
    it.vm.execute("block-dirty-bitmap-add", {"node": "boot", "name": "backup"})


def _limits(it: World, tmp_path: Path) -> None:
    none = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    it.vm.execute("block_set_io_throttle", {"device": "boot", "bps": 1 << 20, **none})


def _anonymous(it: World, tmp_path: Path) -> None:
    it.vm.execute("device_add", {"driver": "virtio-balloon-pci", "bus": "rp1"})


def _secret(it: World, tmp_path: Path) -> None:
    it.vm.execute("object-add", {"qom-type": "secret", "id": "s1", "data": "x"})


def _export(it: World, tmp_path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(tmp_path / "nbd.sock")}}
    it.vm.execute("nbd-server-start", {"addr": address})
    it.vm.execute("block-export-add", {"type": "nbd", "id": "e1", "node-name": "d1", "name": "x"})


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (_snapshot, "disk-switched", "the drive boot was started on .*boot.img and uses .*snap.qcow2 now"),
        (_change_medium, "disk-switched", "the drive cd was started on .*disc.iso and uses .*other.iso now"),
        (_snapshot_of_node, "disk-switched", "the device hd1 was started on d1 and uses s1 now"),
        (_unknown_driver, "hotplug-not-recreatable", "the blockdev n2 .null-co. was added since the start"),
        (_job, "block-job", "the job copy is at work"),
        (_bitmap, "dirty-bitmap", "the dirty bitmap backup is kept in the memory"),
        (_limits, "limits-changed", "the I/O limits of boot were set at run time"),
        (_anonymous, "hotplug-not-recreatable", "it has no id"),
        (_secret, "hotplug-not-recreatable", "the object s1 .secret. was added"),
        (_export, "block-export", "the export e1 serves a block node"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_") or None,
)
def test_what_cannot_be_made_anew_is_refused_and_the_vm_runs_on(
    world: Callable[..., World],
    qemu_new: Path,
    tmp_path: Path,
    change: Callable[[World, Path], None],
    code: str,
    why: str,
) -> None:
    disc, disk = tmp_path / "disc.iso", tmp_path / "disk.img"
    disc.write_bytes(bytes(1 << 16))
    disk.write_bytes(bytes(1 << 20))
    it = world(
        *PORTS,
        *("-drive", f"if=none,id=cd,media=cdrom,file={disc}", "-device", "ide-cd,drive=cd,id=cd0"),
        *("-device", "virtio-scsi-pci,id=scsi0"),
        *("-blockdev", f"driver=file,node-name=f1,filename={disk}", "-blockdev", "driver=raw,node-name=d1,file=f1"),
        *("-device", "scsi-hd,id=hd1,drive=d1,bus=scsi0.0"),
    )
    assert it.plan(qemu_new).problems == []
    change(it, tmp_path)

    problems = it.plan(qemu_new).problems

    assert code in {problem.code for problem in problems}, problems
    assert any(problem.code == code and _matches(why, problem.message) for problem in problems), problems
    assert all(problem.action for problem in problems)
    assert it.vm.execute("query-status")["status"] == "running"


def test_listening_sockets_are_handed_over_and_their_paths_stay(
    world: Callable[..., World], qemu_new: Path, tmp_path: Path
) -> None:
    serial, second = tmp_path / "serial.sock", tmp_path / "second.sock"
    it = world(
        *("-serial", f"unix:{serial},server=on,wait=off"),
        *("-chardev", f"socket,id=m2,path={second},server=on,wait=off", "-mon", "chardev=m2,mode=control"),
        *("-pidfile", str(tmp_path / "pid")),
    )
    inodes = [os.stat(path).st_ino for path in (serial, second, it.vm.qmp_path)]

    result = it.move(qemu_new)

    assert [os.stat(path).st_ino for path in (serial, second, it.vm.qmp_path)] == inodes
    assert (tmp_path / "pid").read_text() == f"{result.new_pid}\n"
    for path in (serial, second):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            if path == second:
                assert b"QMP" in client.recv(100)
    assert it.plan(qemu_new).problems == []
    again = it.move(qemu_new)
    assert (tmp_path / "pid").read_text() == f"{again.new_pid}\n"


def test_pid_file_follows_whichever_way_the_vm_goes(
    world: Callable[..., World], qemu_old: Path, qemu_new: Path, tmp_path: Path
) -> None:
    """The option is lost by a transfer, and what stands for it has to outlive a hand-over to a child."""
    it = world("-pidfile", str(tmp_path / "pid"))
    first = it.mechanism
    other = {"vfork": "cpr-transfer", "cpr-transfer": "vfork"}[first]
    for mechanism, binary in ((first, qemu_new), (other, qemu_old), (first, qemu_new), (other, qemu_old)):
        it.mechanism = mechanism
        result = it.move(binary)
        assert (tmp_path / "pid").read_text() == f"{result.new_pid}\n", mechanism


@pytest.mark.parametrize("value", ["chroot=/", "exit-with-parent=on"])
def test_process_that_cannot_have_a_twin_is_refused(world: Callable[..., World], qemu_new: Path, value: str) -> None:
    it = world("-run-with", value)

    problems = it.plan(qemu_new).problems

    assert [problem.code for problem in problems] == ["option-refused"]


def test_client_of_a_character_device_stays_connected(
    world: Callable[..., World], qemu_old: Path, qemu_new: Path, tmp_path: Path
) -> None:
    """By path and by port: both directions work on the connection of before."""
    path = tmp_path / "agent.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    it = world(
        *("-chardev", f"socket,id=c1,path={path},server=on,wait=off", "-device", "isa-serial,chardev=c1"),
        *("-serial", f"tcp:127.0.0.1:{port},server=on,wait=off"),
    )
    with socket.socket(socket.AF_UNIX) as first, socket.create_connection(("127.0.0.1", port)) as second:
        first.connect(str(path))
        for binary in (qemu_new, qemu_old):
            it.move(binary)
            for client in (first, second):
                with pytest.raises(BlockingIOError):
                    client.recv(1, socket.MSG_DONTWAIT)
            states = {item["label"]: item["filename"] for item in it.vm.execute("query-chardev")}
            assert not any(states[label].startswith("disconnected:") for label in ("c1", "serial0")), states


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def _build_of(binary: Path) -> Path:
    return binary.resolve().parent.parent
