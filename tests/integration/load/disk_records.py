# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with the records on a disk image, seen from outside, after its guest has ended."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import WRITERS, DiskStatus
from ansible_collections.vmm.live_upgrade.tests.lab.hosttools.verify import RECORD_SIZE, record_problem


def verify_image(path: Path, image_format: str, told: DiskStatus, nonce: int) -> int:
    """Return how many records verify. Raises ``AssertionError`` on the first that does not, and on damage to a qcow2.

    ``told`` is what the guest had said last: every record it knew to be written has to be there, or the one that was
    in flight for the same slot after it.
    """
    if image_format == "raw":
        return _verify(path, told, nonce)
    checked = subprocess.run(["qemu-img", "check", "-f", image_format, path], capture_output=True, text=True)
    assert checked.returncode == 0, f"{path}: {checked.stdout}{checked.stderr}"
    with tempfile.NamedTemporaryFile(dir=path.parent) as raw:
        subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw.name], check=True)
        return _verify(Path(raw.name), told, nonce)


def _verify(path: Path, told: DiskStatus, nonce: int) -> int:
    verified = 0
    with open(path, "rb") as image:
        for last in told.done:
            oldest = max(WRITERS + last % WRITERS, last - told.slots + WRITERS)
            for seq in range(oldest, last + 1, WRITERS):
                slot = seq % told.slots
                image.seek(slot * RECORD_SIZE)
                problem, (found, its_nonce, _counter) = record_problem(image.read(RECORD_SIZE), slot, told.slots)
                in_flight = found == seq + told.slots == last + WRITERS
                assert problem is None, f"{path}: slot {slot}, where record {seq} was written, {problem}"
                assert found == seq or in_flight, f"{path}: slot {slot} holds record {found}, not {seq}"
                assert its_nonce == nonce, f"{path}: slot {slot} is of another boot"
                verified += 1
    return verified
