# SPDX-License-Identifier: GPL-3.0-or-later
"""Throttled disks in I/O threads, which a real 10.2 may forget the requests of."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import marked_copy

from .conftest import MACHINE, World


def test_refuses_a_throttled_disk_in_an_io_thread_until_its_limits_are_lifted(world: World, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("group", "drive")]
    for image in images:
        image.write_bytes(bytes(1 << 20))
    vm = world.vm(
        extra=[
            *("-object", "iothread,id=io1", "-object", "throttle-group,id=tg1,x-iops-total=200"),
            *("-blockdev", f"driver=file,node-name=f1,filename={images[0]}"),
            *("-blockdev", "driver=throttle,node-name=n1,throttle-group=tg1,file=f1"),
            *("-device", "virtio-blk-pci,id=hd1,drive=n1,iothread=io1"),
            *("-drive", f"if=none,id=d2,format=raw,file={images[1]},throttling.bps-write=100000"),
            *("-device", "virtio-scsi-pci,id=scsi0,iothread=io1", "-device", "scsi-hd,id=sd2,drive=d2"),
        ]
    )
    verdict = world.judge()

    assert [item.code for item in verdict.refusals] == ["throttled-iothread"] * 2
    messages = " ".join(item.message for item in verdict.refusals)
    assert "hd1 is throttled (tg1)" in messages and "d2 is throttled (d2)" in messages

    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    vm.execute("block_set_io_throttle", {"id": "sd2", **limits})
    vm.execute("qom-set", {"path": "/objects/tg1", "property": "limits", "value": {"iops-total": 0}})

    assert world.judge().verdict == "go"


def test_throttled_disk_of_a_qemu_that_forgets_nothing(world: World, qemu_new: Path) -> None:
    binary = marked_copy(qemu_new, world.state_dir.parent / "newer" / "qemu", "qemu-11.1.1-00000000000000cc")
    world.start(
        "web1",
        binary=binary,
        like=qemu_new,
        machine=MACHINE,
        extra=[
            *(
                "-object",
                "iothread,id=io1",
                "-drive",
                "if=none,id=d2,format=raw,file.driver=null-co,throttling.iops-total=9",
            ),
            *("-device", "virtio-blk-pci,id=hd2,drive=d2,iothread=io1"),
        ],
    )

    assert "throttled-iothread" not in [item.code for item in world.judge().refusals]
