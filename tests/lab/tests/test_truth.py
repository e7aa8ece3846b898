# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab says of itself is so: that guests count, that disks hold, who answers, who is let in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from vmmlab.fleet import Fleet
from vmmlab.host import Host
from vmmlab.ssh import make_key
from vmmlab.verify import look_at_host

LabCommand = Callable[..., "CompletedProcess[str]"]

RECORD_BYTES = 4096
VMS = [f"h{host}-vm{vm}" for host in (1, 2, 3) for vm in (1, 2)]


def on_host(host: Host, script: str) -> str:
    """Run a Python program there and return what it prints."""
    done = host.access.run("python3", "-", stdin=script)
    assert done.returncode == 0, f"{host.name}: {script}\n{done.stderr}"
    return done.stdout.strip()


def invert_byte(host: Host, path: str, offset: int) -> None:
    """Invert the bits of one byte of a file; twice is as before."""
    on_host(
        host,
        f"import os; f = os.open({path!r}, os.O_RDWR); b = os.pread(f, 1, {offset})[0]; "
        f"os.pwrite(f, bytes([b ^ 255]), {offset}); os.fsync(f)",
    )


def test_status_tells_of_every_host_and_vm(lab: LabCommand) -> None:
    done = lab("status")

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(h\d): up, ssh port \d+, rack\d", done.stdout, re.MULTILINE) == ["h1", "h2", "h3"]
    assert re.findall(r"^(h\d-vm\d)  qemu-\S+ +\d+ ", done.stdout, re.MULTILINE) == VMS


def test_verify_tells_guests_that_went_on_from_those_that_did_not(lab: LabCommand, tmp_path: Path) -> None:
    before, other = tmp_path / "before.json", tmp_path / "other.json"

    first = lab("verify", "--save", str(before))

    assert first.returncode == 0, first.stderr
    looked = json.loads(before.read_text())
    assert [vm["vm"] for vm in looked["vms"]] == VMS
    assert all(vm["records_checked"] > 0 for vm in looked["vms"])
    looked["vms"][0]["page"]["nonce"] ^= 1
    looked["vms"][1]["page"]["counter"] += 10**9
    other.write_text(json.dumps(looked))

    later, against_other = lab("verify", "--against", str(before)), lab("verify", "--against", str(other))

    assert later.returncode == 0, later.stderr
    assert against_other.returncode == 1
    failures = [line for line in against_other.stderr.splitlines() if ": " in line]
    assert len(failures) == 2, failures
    assert failures[0].startswith("h1-vm1: it was booted again: nonce")
    assert failures[1].startswith("h1-vm2: counter did not grow")


def test_verify_sees_one_wrong_byte_on_a_disk_and_on_a_drive_that_is_passed_through(
    fleet: Fleet, lab: LabCommand
) -> None:
    """On the record written last of each, which is the one that is written over last."""
    host = fleet.host("h1")
    (spec,) = [spec for spec in host.vms if spec.passthrough]
    vms = {vm["vm"]: vm for vm in look_at_host(host, with_disk=True)}
    assert vms[spec.name]["records_checked"] > 0
    path, drive = "/var/lib/vmm-lab/h1-vm1.raw", host.drive(spec)
    size = int(on_host(host, f"import os; print(os.stat({path!r}).st_size)"))
    slots = {
        "h1-vm1": vms["h1-vm1"]["page"]["records"] % (size // RECORD_BYTES),
        spec.name: vms[spec.name]["page"]["records"] % (drive.stat().st_size // RECORD_BYTES),
    }

    def invert_both() -> None:
        invert_byte(host, path, slots["h1-vm1"] * RECORD_BYTES + 100)
        _invert_own_byte(drive, slots[spec.name] * RECORD_BYTES + 100)

    invert_both()
    try:
        done = lab("verify")
    finally:
        invert_both()

    assert done.returncode == 1, done.stderr
    assert sorted(line for line in done.stderr.splitlines() if ": " in line) == sorted(
        f"{name}: slot {slot}, where record {vms[name]['page']['records']} was written, has a wrong checksum"
        for name, slot in slots.items()
    )
    assert lab("verify").returncode == 0


def _invert_own_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as drive:
        drive.seek(offset)
        (byte,) = drive.read(1)
        drive.seek(offset)
        drive.write(bytes([byte ^ 0xFF]))


def test_status_sees_a_guest_that_stands_still(fleet: Fleet, lab: LabCommand) -> None:
    host = fleet.host("h2")
    (pid,) = next(vm["pids"] for vm in look_at_host(host, with_disk=False) if vm["vm"] == "h2-vm2")
    on_host(host, f"import os, signal; os.kill({pid}, signal.SIGSTOP)")
    try:
        done = lab("status")
    finally:
        on_host(host, f"import os, signal; os.kill({pid}, signal.SIGCONT)")

    assert done.returncode == 1, done.stdout
    assert lab("status").returncode == 0


@pytest.mark.parametrize("vm", [1, 2])
def test_guests_answer_on_the_network(fleet: Fleet, vm: int) -> None:
    host = fleet.host("h3")

    told = json.loads(
        on_host(
            host, f"import socket; print(socket.create_connection(('192.168.77.{10 + vm}', 7), 60).recv(4096).decode())"
        )
    )

    page = next(seen["page"] for seen in look_at_host(host, with_disk=False) if seen["vm"] == f"h3-vm{vm}")
    assert int(told["nonce"], 16) == page["nonce"]
    assert told["counter"] < page["counter"]


def test_a_host_with_another_key_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    access = fleet.host("h1").access
    other = make_key(tmp_path / "key", "another host")
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{access.port} {other}\n")

    done = replace(access, known_hosts=known, control_path=Path("none")).run("true")

    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_a_lab_that_is_up_is_not_brought_up_again(fleet: Fleet, lab: LabCommand) -> None:
    before = (fleet.state / "state.json").read_bytes()

    done = lab("up")

    assert done.returncode == 1
    assert f"a lab is up already in {fleet.state} (h1, h2, h3): end it with" in done.stderr
    assert (fleet.state / "state.json").read_bytes() == before
    assert all(host.alive() for host in fleet.hosts)


def test_commands_on_a_host_that_is_not_there_name_those_that_are(lab: LabCommand) -> None:
    done = lab("ssh", "h9", "true")

    assert (done.returncode, done.stderr) == (1, "lab: the lab has no host h9: it has h1, h2, h3\n")
