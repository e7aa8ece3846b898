# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""RAM blocks, devices and mechanisms, from what QEMU says and from what the command line says."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import devices, mechanisms
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import (
    Nic,
    Passthrough,
    QmpEndpoint,
    RamBlock,
    Vm,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import Answers
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import Mapping
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.ram import parse_size, ram_blocks

BLOCKS = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x0000000000100000  rw
            /objects/mem    2 MiB  0x0000000004000000 0x0000000001000000 0x0000000001000000 0x0000000005000000  rw
                            4 KiB  0x0000000007000000 0x0000000000001000 0x0000000000001000 0x0000000006500000  rw
  0000:00:01.0/vga.vram     4 KiB  0x0000000005080000 0x0000000001000000 0x0000000001000000 0x0000000007000000  ro
"""
MAPPED = [
    Mapping(0x100000, 0x4100000, False, 0, ""),
    Mapping(0x5000000, 0x6000000, True, 5, "/memfd:memory-backend-memfd (deleted)"),
    Mapping(0x6500000, 0x6501000, True, 5, "/dev/vfio/1"),
]


_VFIO = Passthrough("p", "vfio-pci", "", False)


def options(*words: str) -> list[Option]:
    return parse(["qemu-system-x86_64", *words])


def vm(**values: Any) -> Vm:
    """A VM that nothing speaks against."""
    facts: dict[str, Any] = {
        "name": "web1",
        "pid": 1,
        "start_time_ticks": 1,
        "exe": "/q",
        "exe_deleted": False,
        "build_id": None,
        "gnu_build_id": None,
        "version": "11.1.1",
        "argv": ["/q"],
        "unit": None,
        "cgroup": None,
        "uid": 0,
        "gid": 0,
        "status": "running",
        "migration_status": "none",
        "ram_blocks": [RamBlock("ram0", 1, True, "memfd", True)],
    }
    return Vm(**{**facts, **values})


def test_ram_blocks_are_judged_by_what_is_mapped() -> None:
    answers = Answers(
        said={
            "ramblocks": {"human-readable-text": BLOCKS},
            "memdevs": [{"id": "mem", "share": True}],
            "memory_backend": "pc.ram",
        }
    )

    assert ram_blocks([], answers, MAPPED) == [
        RamBlock("pc.ram", 0x4000000, False, "anonymous", True),
        RamBlock("/objects/mem", 0x1000000, True, "memfd", True),
        RamBlock("0000:00:01.0/vga.vram", 0x1000000, None, "unknown", False),
    ]


def test_ram_blocks_of_a_qemu_that_does_not_tell_addresses() -> None:
    text = "Block Name    PSize  Offset  Used  Total\n  mem    4 KiB  0x0 0x1000 0x1000\n  pc.bios    4 KiB  0x0 0x1000 0x1000\n"
    answers = Answers(said={"ramblocks": {"human-readable-text": text}, "memdevs": [{"id": "mem", "share": True}]})

    assert [(block.id, block.shared) for block in ram_blocks([], answers, MAPPED)] == [("mem", True), ("pc.bios", None)]


@pytest.mark.parametrize(
    "words,expected",
    [
        pytest.param(["-m", "1G"], [("default", 1 << 30, False, "anonymous")], id="no-backend-is-private"),
        pytest.param(
            ["-object", "memory-backend-memfd,id=r,size=16M", "-machine", "q35,memory-backend=r"],
            [("r", 16 << 20, True, "memfd")],
            id="memfd-is-shared-by-default",
        ),
        pytest.param(
            ["-object", "memory-backend-ram,id=r,size=64M", "-machine", "q35,memory-backend=r"],
            [("r", 64 << 20, False, "anonymous")],
            id="ram-is-not",
        ),
        pytest.param(
            [
                "-object",
                '{"qom-type":"memory-backend-file","id":"r","size":4096,"mem-path":"/f","share":true}',
                "-M",
                "memory-backend=r",
            ],
            [("r", 4096 << 20, True, "unknown")],
            id="json-without-such-a-mapping",
        ),
    ],
)
def test_ram_blocks_without_a_monitor(words: list[str], expected: list[tuple[str, int, bool, str]]) -> None:
    found = ram_blocks(options(*words), Answers(), MAPPED)

    assert [(block.id, block.size_bytes, block.shared, block.backing) for block in found] == expected


@pytest.mark.parametrize(
    "text,expected", [("128", 128 << 20), ("2G", 2 << 30), ("1.5g", 3 << 29), ("512KiB", 512 << 10)]
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


def test_size_that_is_none() -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size("lots")


def test_taps_are_named_by_option_by_descriptor_and_by_elimination() -> None:
    words = ["-netdev", "tap,id=a,ifname=tap0,vhost=on", "-netdev", "tap,id=b,fd=7", "-netdev", "tap,id=c"]

    found = devices.nics(options(*words), Answers(), {7: "tap1", 9: "tap2", 11: "tap0"})

    assert [(nic.id, nic.interface, nic.vhost) for nic in found] == [
        ("a", "tap0", True),
        ("b", "tap1", False),
        ("c", "tap2", False),
    ]


def test_disks_without_a_monitor() -> None:
    words = [
        "-drive",
        "if=none,id=d,format=qcow2,file=/img",
        "-blockdev",
        '{"driver":"file","filename":"/b","node-name":"n"}',
    ]

    found = devices.disks(options(*words), Answers())

    assert [(disk.id, disk.format, disk.files) for disk in found] == [("d", "qcow2", ["/img"]), ("n", "file", ["/b"])]


def test_image_chain_of_local_files_only() -> None:
    image = {
        "filename": 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/top"}}',
        "backing-image": {"filename": "file:/base", "backing-image": {"filename": "nbd://host/export"}},
    }
    answers = Answers(said={"block": [{"device": "d", "inserted": {"node-name": "n", "drv": "qcow2", "image": image}}]})

    assert devices.disks([], answers)[0].files == ["/top", "/base"]


def test_passthrough_devices() -> None:
    words = [
        "-device",
        "vfio-pci,host=01:00.0,id=p,iommufd=i0",
        "-device",
        "virtio-net-pci",
        "-device",
        "usb-host,hostdevice=/dev/x",
    ]

    assert devices.passthrough(options(*words), Answers()) == [
        Passthrough("p", "vfio-pci", "01:00.0", True),
        Passthrough("", "usb-host", "/dev/x", False),
    ]


@pytest.mark.parametrize(
    "values,words,code",
    [
        pytest.param({}, [], None, id="nothing-against-it"),
        pytest.param({"status": None}, [], "qmp-missing", id="no-monitor"),
        pytest.param({"status": None, "qmp_endpoints": [QmpEndpoint("/q", "busy", "")]}, [], "qmp-busy", id="busy"),
        pytest.param({"status": None, "qmp_endpoints": [QmpEndpoint("/q", "dead", "")]}, [], "qmp-dead", id="dead"),
        pytest.param({"status": None, "qmp_endpoints": [QmpEndpoint("/q", "ok", "")]}, [], "qmp-silent", id="silent"),
        pytest.param({"status": None, "stopped": True}, [], "process-stopped", id="stopped"),
        pytest.param({"status": "paused"}, [], "vm-not-running", id="paused"),
        pytest.param({"status": "io-error"}, [], "vm-not-running", id="io-error"),
        pytest.param({"status": "postmigrate", "migration_status": "completed"}, [], "half-moved", id="postmigrate"),
        pytest.param({"migration_status": "active"}, [], "migration-running", id="migrating"),
        pytest.param({"migration_status": "failed"}, [], None, id="failed-migration-is-over"),
        pytest.param({"version": "9.2.0"}, [], "qemu-too-old", id="old-qemu"),
        pytest.param({"ram_blocks": [RamBlock("r", 1, False, "anonymous", True)]}, [], "ram-private", id="private"),
        pytest.param({"ram_blocks": [RamBlock("r", 1, False, "anonymous", False)]}, [], "aux-ram-private", id="aux"),
        pytest.param({"ram_blocks": [RamBlock("r", 1, None, "unknown", True)]}, [], "ram-unknown", id="unknown"),
        pytest.param({"version": "10.2.2", "passthrough": [_VFIO]}, [], "vfio-too-old", id="vfio-10.2"),
        pytest.param({"version": "11.0.1", "passthrough": [_VFIO]}, [], "vfio-too-old", id="vfio-11.0"),
        pytest.param({"version": "11.1.1", "passthrough": [_VFIO]}, [], None, id="vfio-11.1"),
        pytest.param(
            {"passthrough": [Passthrough("u", "usb-host", "", False)]}, [], "device-not-coverable", id="usb-host"
        ),
        pytest.param(
            {"nics": [Nic("n", "vhost-user", None, None, None, False)]}, [], "command-not-recreatable", id="vhost-user"
        ),
        pytest.param({"migration_blockers": ["virgl is not yet migratable"]}, [], "migration-blocked", id="blocker"),
        pytest.param(
            {"migration_blockers": ["The vmdk format used by node 'x' does not support live migration"]},
            [],
            None,
            id="blocker-of-other-modes",
        ),
        pytest.param({}, ["-vnc", "none"], None, id="vnc-none"),
        pytest.param({}, ["-vnc", ":1"], "command-not-recreatable", id="vnc"),
        pytest.param({}, ["-display", "vnc=:1"], "command-not-recreatable", id="display-vnc"),
        pytest.param({}, ["-s"], "command-not-recreatable", id="gdb"),
        pytest.param({}, ["-nic", "user,hostfwd=tcp::22-:22"], "command-not-recreatable", id="hostfwd"),
        pytest.param({}, ["-netdev", "stream,id=n,server=on"], "command-not-recreatable", id="stream"),
        pytest.param({}, ["-sandbox", "on,spawn=deny"], None, id="sandbox-does-not-hinder-a-spawner-outside"),
    ],
)
def test_what_speaks_against_cpr_transfer(values: dict[str, Any], words: list[str], code: str | None) -> None:
    subject, given = vm(**values), options(*words)
    obstacles = [
        *mechanisms.common_obstacles(subject),
        *mechanisms.vfio_transfer_obstacles(subject),
        *mechanisms.command_obstacles(subject, given),
    ]

    assert [obstacle.code for obstacle in obstacles] == ([code] if code else [])


@pytest.mark.parametrize(
    "values,codes",
    [
        pytest.param({"cpr_vfork": False}, ["vfork-unavailable"], id="stock"),
        pytest.param({}, [], id="no-devices"),
        pytest.param({"vfork_blockers": ["of no concern without devices"]}, [], id="ram-is-told-by-the-common-ones"),
        pytest.param({"passthrough": [_VFIO]}, ["vfork-unavailable"], id="vfio-with-a-build-from-before"),
        pytest.param({"passthrough": [_VFIO], "vfork_blockers": []}, [], id="vfio"),
        pytest.param({"passthrough": [_VFIO], "vfork_blockers": [], "version": "10.2.2"}, [], id="vfio-10.2"),
        pytest.param({"passthrough": [_VFIO], "vfork_blockers": ["is an mdev"]}, ["vfork-blocked"], id="vfio-blocked"),
    ],
)
def test_what_speaks_against_vfork(values: dict[str, Any], codes: list[str]) -> None:
    obstacles = mechanisms.vfork_obstacles(vm(**{"cpr_vfork": True, **values}), [])

    assert [obstacle.code for obstacle in obstacles] == codes


def test_vfio_devices_of_10_2_go_by_vfork_and_not_by_cpr_transfer() -> None:
    judged = mechanisms.judge(vm(version="10.2.2", cpr_vfork=True, vfork_blockers=[], passthrough=[_VFIO]), [])

    assert (judged["vfork"].possible, judged["cpr-transfer"].possible) == (True, False)


def test_other_mechanisms_are_possible_only_when_asked_for() -> None:
    judged = mechanisms.judge(vm(), options("-sandbox", "on,spawn=deny"))

    assert judged["cpr-transfer"].possible is True
    assert (judged["cpr-exec"].possible, judged["local-migration"].possible) == (False, True)
    assert judged["local-migration"].reasons[0].startswith("only when asked for")


def test_local_migration_needs_no_shared_memory_but_no_passthrough() -> None:
    private = [RamBlock("r", 1, False, "anonymous", True)]

    assert mechanisms.judge(vm(ram_blocks=private), [])["local-migration"].possible is True
    device = Passthrough("p", "vfio-pci", "", False)
    assert mechanisms.judge(vm(passthrough=[device]), [])["local-migration"].possible is False
