# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of every kind, written to with several requests in flight, over upgrades that arrive and that are taken back.

One VM has them all and is moved once; each disk is judged by a test of its own. The guest reads back every record at once
and again a round later (guestload.c); the image is read from outside after the guest's end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.load.disk_records import RECORD_SIZE, verify_image
from ansible_collections.vmm.live_upgrade.tests.integration.load.disks import DISKS, DiskSet
from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import WRITERS, Status
from ansible_collections.vmm.live_upgrade.tests.integration.load.loaded_vm import LoadedVm, build_of, faulty_build

FAULTS = ("ready:kill", "loaded:exit", "committed:kill")


@dataclass(frozen=True)
class Journey:
    """What came of the VM: the guest's last words, and its images."""

    last: Status
    images: list[Path]


@pytest.fixture(scope="module")
def journey(qemu_old: Path, qemu_new: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """Move the VM there and back, and be refused on the way at every point; then end it in order."""
    directory = tmp_path_factory.mktemp("disks")
    disks = DiskSet.create(directory, directory / "vm")
    with LoadedVm(qemu_old, directory / "vm", None, disks) as vm:
        for number, target in enumerate((qemu_new, qemu_old, qemu_new)):
            for fault in FAULTS:
                result = vm.move(faulty_build(directory / str(number), target, fault))
                assert result.outcome == "rolled_back", result
                vm.wait_records()
            assert vm.rehearse(build_of(target)).outcome == "rolled_back"
            vm.wait_records()
            vm.upgrade(build_of(target))
            vm.wait_records()
        yield Journey(vm.quit(), disks.images)


@pytest.mark.parametrize("number", range(len(DISKS)), ids=[disk.name for disk in DISKS])
def test_no_request_is_lost_or_repeated(journey: Journey, number: int) -> None:
    told = journey.last.disks[number]

    assert (told.errors, told.mismatches) == (0, 0)
    verified = verify_image(journey.images[number], DISKS[number].image_format, told, journey.last.nonce)
    assert verified >= min(told.records, told.slots)


@pytest.mark.parametrize("damage", ["lost", "repeated"])
def test_damage_would_be_seen(journey: Journey, tmp_path: Path, damage: str) -> None:
    """The check of the images is able to fail."""
    told, image = journey.last.disks[0], tmp_path / "damaged.img"
    shutil.copy(journey.images[0], image)
    slot, other = (seq % told.slots * RECORD_SIZE for seq in (told.done[0], told.done[0] - WRITERS))
    with open(image, "r+b") as stream:
        stream.seek(other)
        data = bytes(RECORD_SIZE) if damage == "lost" else stream.read(RECORD_SIZE)
        stream.seek(slot)
        stream.write(data)

    with pytest.raises(AssertionError, match=rf"slot {slot // RECORD_SIZE}\b"):
        verify_image(image, "raw", told, journey.last.nonce)


def test_guest_saw_nothing_of_it(journey: Journey) -> None:
    assert journey.last.complaints == 0
