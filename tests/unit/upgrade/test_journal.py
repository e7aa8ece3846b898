# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal keeps what was written, also on a disk that fills up, and says so when it cannot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal, JournalError, read_journal


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def _fill(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError:
            return


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("start", boot_id="b")
    journal.write("begin", "vm1", old_pid=7)
    journal.close()

    records = read_journal(tmp_path / "journal.jsonl")

    assert [(record["step"], record.get("vm")) for record in records] == [("start", None), ("begin", "vm1")]
    assert records[1]["old_pid"] == 7


def test_torn_last_record_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("start")
    journal.close()
    with open(tmp_path / "journal.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"step": "beg')

    assert [record["step"] for record in read_journal(tmp_path / "journal.jsonl")] == ["start"]


def test_missing_journal_reads_as_empty(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal.jsonl") == []


def test_no_room_for_a_journal_is_refused_at_once(small_disk: Path) -> None:
    _fill(small_disk)

    with pytest.raises(JournalError, match="No space left"):
        Journal(small_disk)


def test_reserve_carries_the_journal_over_a_full_disk(small_disk: Path) -> None:
    journal = Journal(small_disk)
    journal.write("start")
    _fill(small_disk)

    journal.write("committed", "vm1", pad="x" * 8000)

    assert [record["step"] for record in read_journal(small_disk / "journal.jsonl")] == ["start", "committed"]


def test_exhausted_reserve_is_an_error_and_leaves_no_torn_record(small_disk: Path) -> None:
    journal = Journal(small_disk)
    _fill(small_disk)
    with pytest.raises(JournalError, match="No space left"):
        for _ in range(1000):
            journal.write("step", "vm1", pad="x" * 4000)
            _fill(small_disk)

    assert read_journal(small_disk / "journal.jsonl")
    assert (small_disk / "journal.jsonl").read_bytes().endswith(b"\n")


def test_journal_is_private(tmp_path: Path) -> None:
    Journal(tmp_path).write("start")

    assert os.stat(tmp_path / "journal.jsonl").st_mode & 0o777 == 0o600
