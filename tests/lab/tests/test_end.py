# SPDX-License-Identifier: GPL-3.0-or-later
"""Labs that end leave nothing: by ``down``, by a failure on the way up, by a signal on the way up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmmlab.process import ProcessId

from .conftest import lab_argv, run_lab

SMALL = ("up", "--hosts", "1", "--vms", "0", "--memory", "768")
END_S = 120


class Lab:
    """A lab of a test's own, and what there was of the machine before."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.control: Path | None = None
        self.emulator: ProcessId | None = None
        self._mounts = _mounts(state)

    def note(self) -> None:
        """Remember what is about to be gone, from the lab's state."""
        data = json.loads((self.state / "state.json").read_text())
        self.control = Path(data["control"])
        self.emulator = ProcessId(*data["hosts"][0]["process"])

    def assert_gone(self) -> None:
        """No file, no process, no mount; namespaces and sockets do not outlive their processes and files."""
        assert not self.state.exists()
        assert self.control is None or not self.control.exists()
        assert self.emulator is None or not self.emulator.alive()
        assert _processes_naming(self.state) == []
        assert _mounts(self.state) == self._mounts


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    """A lab that is yet to be brought up. It is down at the end, whatever the test did."""
    lab = Lab(tmp_path / "lab")
    yield lab
    run_lab(lab.state, "down")


def test_down_leaves_nothing_of_a_lab_that_was_up(small: Lab) -> None:
    up = run_lab(small.state, *SMALL)

    assert up.returncode == 0, up.stdout + up.stderr
    assert up.stdout.splitlines()[-1] == str(small.state / "inventory.yml")
    small.note()
    status = run_lab(small.state, "status")
    assert (status.returncode, status.stdout.startswith("h1: up, ssh port")) == (0, True), status.stdout

    down, again = run_lab(small.state, "down"), run_lab(small.state, "down")

    assert (down.returncode, down.stdout.splitlines()[-1]) == (0, "down")
    small.assert_gone()
    assert (again.returncode, again.stdout) == (0, f"nothing is up in {small.state}\n")


def test_a_host_that_died_is_told_and_cleared_away(small: Lab) -> None:
    with _starting(small) as process:
        _read_until(process, "booting, ssh port")
        process.kill()  # as when the machine dies: nobody cleans up
    small.note()
    assert small.emulator is not None and small.emulator.alive()
    small.emulator.stop(grace_s=5.0)

    status = run_lab(small.state, "status")

    assert (status.returncode, status.stdout.splitlines()[0]) == (1, "h1: its emulator has ended")
    assert run_lab(small.state, "down").returncode == 0
    small.assert_gone()


def test_an_up_that_fails_leaves_nothing(small: Lab) -> None:
    done = run_lab(small.state, *SMALL, "--limit", "1")

    assert done.returncode == 1
    assert "lab: h1: no ssh within 1 s" in done.stderr, done.stderr
    small.assert_gone()


def test_an_up_that_is_interrupted_leaves_nothing(small: Lab) -> None:
    with _starting(small) as process:
        _read_until(process, "booting, ssh port")
        small.note()
        process.send_signal(signal.SIGTERM)
        output, _none = process.communicate(timeout=END_S)

    assert (process.returncode, output.splitlines()[-1]) == (130, "lab: interrupted")
    small.assert_gone()


def _starting(lab: Lab) -> subprocess.Popen[str]:
    return subprocess.Popen(
        lab_argv(lab.state, *SMALL), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"the lab did not say {words!r}: {''.join(seen)}")


def _processes_naming(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue  # it has ended meanwhile
        if str(path) in command:
            found.append(command)
    return found


def _mounts(state: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line or "vmm-lab" in line]
