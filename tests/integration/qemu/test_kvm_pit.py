# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that runs by the timer of KVM goes on, whenever its state was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import MACHINE, await_that

# A section of the stream begins with the length and the name of its device, its instance and its version. Of the interrupt
# controller, the first one is the master; its fields are last_irr (which lines are high), irr, imr, ...
_PIC = b"\x05i8259"
_PIC_HEADER = len(_PIC) + 4 + 4
_IMR = 2
_IRQ0 = 1


@pytest.mark.parametrize("build", ["qemu_old", "qemu_new"])
def test_state_saved_within_a_pulse_of_the_timer(
    start_qemu: QemuFactory, build: str, accel: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A pulse is too short to be met on purpose, so it is written into the state: the line of IRQ 0 is high.

    QEMU's own timer, without KVM, has no pulses while the VM is stopped: its state goes over as it is.
    """
    binary = request.getfixturevalue(build)
    state = tmp_path / "state"
    source = start_qemu("source", binary=binary, machine=MACHINE)
    source.wait_counting()
    source.execute("stop")
    source.execute("migrate", {"uri": f"file:{state}"})
    await_that(lambda: source.execute("query-migrate").get("status") == "completed")

    stream = bytearray(state.read_bytes())
    pic = stream.index(_PIC) + _PIC_HEADER
    assert (
        stream[pic + _IMR] == 0xFF & ~_IRQ0
    ), "the guest has IRQ 0 alone: this is not the interrupt controller's state"
    if accel == "kvm":
        stream[pic] |= _IRQ0
    state.write_bytes(stream)
    target = start_qemu("target", binary=binary, machine=MACHINE, extra=["-incoming", f"file:{state}"])
    await_that(lambda: target.execute("query-status")["status"] == "paused")
    target.execute("cont")

    target.wait_counting()
