# SPDX-License-Identifier: GPL-3.0-or-later
"""The last words of a process, wherever its standard error goes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.last_words import LastWords, last_lines


@pytest.fixture
def speaker() -> Iterator[Callable[..., int]]:
    """Start a process with a standard error, and return its pid."""
    started = []

    def start(stderr: Any) -> int:
        started.append(subprocess.Popen(["sleep", "600"], stderr=stderr))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_what_is_said_from_now_on_is_heard(speaker: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("long ago\n")
    with open(path, "ab", buffering=0) as log:
        words = LastWords(speaker(log))
        before = words.heard()
        log.write(b"one\ntwo\nthree\n")
        path.unlink()
        after = words.heard()
    words.close()
    words.close()

    assert (before, after) == ("", ", last words: two | three")


def test_a_long_log_is_read_from_its_end(speaker: Callable[..., int], tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab", buffering=0) as log:
        words = LastWords(speaker(log))
        log.write(b"x" * 100_000 + b"\nthe end\n")

        assert words.heard().endswith("x | the end")
    words.close()


@pytest.mark.parametrize(
    ("stderr", "where"),
    [(subprocess.DEVNULL, "/dev/null"), (subprocess.PIPE, "the VM's own log")],
    ids=["null", "pipe"],
)
def test_where_they_went_is_told_when_they_cannot_be_read(speaker: Callable[..., int], stderr: int, where: str) -> None:
    assert LastWords(speaker(stderr)).heard() == f" (its last words went to {where})"


def test_a_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    assert "the VM's own log" in LastWords(process.pid).heard()
    assert not os.path.exists(f"/proc/{process.pid}")


def test_lines_are_joined_and_cut() -> None:
    assert last_lines(" \n") == ""
    assert last_lines("a\nb\nc\n") == ", last words: b | c"
    assert len(last_lines("y" * 1000)) == len(", last words: ") + 400
