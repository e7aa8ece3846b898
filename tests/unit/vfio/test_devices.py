# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the devices of the passthrough tests are."""

from __future__ import annotations

from pathlib import Path

from vfiolab.devices import BY_NAME, DEVICES


def test_each_has_a_slot_of_its_own() -> None:
    assert len({device.slot for device in DEVICES}) == len(DEVICES) == len(BY_NAME)


def test_what_is_passed_through_is_found_from_the_place_in_the_machine(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    root = tmp_path / "pci0000:00"
    port = BY_NAME["igb-vf"].address
    physical = root / f"0000:00:{port:02x}.0" / "0000:02:00.0"
    virtual = physical.parent / "0000:02:10.0"
    for folder in (physical, virtual, devices):
        folder.mkdir(parents=True)
    (physical / "virtfn0").symlink_to(virtual)
    (devices / f"0000:00:{port:02x}.0").symlink_to(physical.parent)
    behind = root / f"0000:00:{BY_NAME['igb'].address:02x}.0"
    (behind / "0000:01:00.0").mkdir(parents=True)
    (devices / behind.name).symlink_to(behind)

    assert BY_NAME["nvme"].host_address(devices) == "0000:00:10.0"
    assert BY_NAME["igb"].host_address(devices) == "0000:01:00.0"
    assert BY_NAME["igb-vf"].host_address(devices) == "0000:02:10.0"


def test_the_guest_is_told_what_the_device_is(tmp_path: Path) -> None:
    assert BY_NAME["nvme"].job() == "disk:0:10:nvme0:8"
    assert BY_NAME["edu-intx"].job() == "edu:7:17:-:0"
    arguments = BY_NAME["nvme"].emulated_arguments(tmp_path)
    assert f"file={tmp_path}/nvme.img," in arguments[1]
    assert "addr=0x10" in arguments[3]


def test_two_share_a_slot_of_the_host_and_so_their_group(tmp_path: Path) -> None:
    addresses = [BY_NAME[name].host_address(tmp_path) for name in ("edu", "edu-intx")]
    assert addresses == ["0000:00:16.0", "0000:00:16.1"]
    assert "addr=0x16.0,multifunction=on" in BY_NAME["edu"].emulated_arguments(tmp_path)[1]
    assert BY_NAME["edu-intx"].address == 0x17, "in the VM it has a slot of its own"
