# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of every kind, written to with several requests in flight, over upgrades that arrive and that are taken back.

One VM has them all and is moved along a route; each disk is judged by a test of its own. The guest reads back every record
at once and again a round later (guestload.c); the image is read from outside after the guest's end.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.load.disk_records import verify_image
from ansible_collections.vmm.live_upgrade.tests.integration.load.disks import DISKS, DiskSet
from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import WRITERS, Status
from ansible_collections.vmm.live_upgrade.tests.integration.load.loaded_vm import LoadedVm, build_of, faulty_build
from ansible_collections.vmm.live_upgrade.tests.lab.hosttools.verify import RECORD_SIZE

FAULTS = ("ready:kill", "loaded:exit", "committed:kill")


# A plain stop and cont of QEMU 10.2 forgets throttled requests in an I/O thread for ever (the timer of a throttle group is
# armed while it is being restarted; upstream has mended it since). Whatever takes a guest back does just that. So a VM
# that is taken back on 10.2 goes without such a disk, and one that has it is taken back on 11.1 only.
ROUTES = {
    "taken-back-on-both": (("10.2", "11.1", "10.2", "11.1"), ("10.2", "11.1"), DISKS[:-1]),
    "taken-back-on-11.1": (("11.1", "10.2", "11.1"), ("11.1",), DISKS),
}
CASES = [(route, number) for route, (_path, _taken_back, disks) in ROUTES.items() for number in range(len(disks))]


@dataclass(frozen=True)
class Journey:
    """What came of the VM: the guest's last words, and its images."""

    last: Status
    disks: DiskSet


@pytest.fixture(scope="module")
def journeys(qemu_old: Path, qemu_new: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Journey]:
    """Return a function that makes the journey along a route, once."""
    binaries = {"10.2": qemu_old, "11.1": qemu_new}

    @functools.cache
    def journey(route: str) -> Journey:
        return _make_journey(route, binaries, tmp_path_factory.mktemp(route))

    return journey


def _make_journey(route: str, binaries: dict[str, Path], directory: Path) -> Journey:
    """Move the VM along the route, refuse it on the way at every point; then end it in order."""
    path, taken_back_on, kinds = ROUTES[route]
    disks = DiskSet.create(directory, directory / "vm", kinds)
    with LoadedVm(binaries[path[0]], directory / "vm", None, disks) as vm:
        for number, (series, target) in enumerate(zip(path, path[1:])):
            if series in taken_back_on:
                _take_back(vm, directory / str(number), binaries[target])
            vm.upgrade(build_of(binaries[target]))
            vm.wait_records()
        if path[-1] in taken_back_on:
            _take_back(vm, directory / "end", binaries[path[0]])
        return Journey(vm.quit(), disks)


def _take_back(vm: LoadedVm, directory: Path, target: Path) -> None:
    for fault in FAULTS:
        result = vm.move(faulty_build(directory, target, fault))
        assert result.outcome == "rolled_back", result
        vm.wait_records()
    assert vm.rehearse(build_of(target)).outcome == "rolled_back"
    vm.wait_records()


@pytest.mark.parametrize(("route", "number"), CASES, ids=[f"{route}-{DISKS[number].name}" for route, number in CASES])
def test_no_request_is_lost_or_repeated(journeys: Callable[[str], Journey], route: str, number: int) -> None:
    journey = journeys(route)
    told = journey.last.disks[number]

    assert (told.errors, told.mismatches, journey.last.complaints) == (0, 0, 0)
    image, image_format = journey.disks.images[number], journey.disks.disks[number].image_format
    # A writer that is behind the others has not filled its slots when all together have written that many.
    filled = sum(min(last // WRITERS, told.slots // WRITERS) for last in told.done)
    assert verify_image(image, image_format, told, journey.last.nonce) == filled


@pytest.mark.parametrize("damage", ["lost", "repeated"])
def test_damage_would_be_seen(journeys: Callable[[str], Journey], tmp_path: Path, damage: str) -> None:
    """The check of the images is able to fail."""
    journey = journeys("taken-back-on-11.1")
    told, image = journey.last.disks[0], tmp_path / "damaged.img"
    shutil.copy(journey.disks.images[0], image)
    slot, other = (seq % told.slots * RECORD_SIZE for seq in (told.done[0], told.done[0] - WRITERS))
    with open(image, "r+b") as stream:
        stream.seek(other)
        data = bytes(RECORD_SIZE) if damage == "lost" else stream.read(RECORD_SIZE)
        stream.seek(slot)
        stream.write(data)

    with pytest.raises(AssertionError, match=rf"slot {slot // RECORD_SIZE}\b"):
        verify_image(image, "raw", told, journey.last.nonce)
