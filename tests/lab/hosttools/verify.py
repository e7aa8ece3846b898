# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the lab VMs of one host from outside. Fed to ``python3 -`` over ssh; standard library only.

Its argument is a JSON object: ``vms`` (names), ``disk`` (check the records too), ``wait_s`` (for guests that still
boot). It prints one JSON list: per VM what its status page says, which build it runs, whether it counts, and what is
wrong with its disk. Judging is left to the caller.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

STATUS_PAGE = 0x8000000
PAGE_MAGIC = 0x564D4D4C41420001
WORDS = """
    magic counter uptime_ms records disk_errors disk_mismatches max_gap_us complaints clock_jumps requests nonce
""".split()
RECORD_MAGIC = 0x564D4D4C41425245
RECORD_SIZE = 4096
HEADER = struct.Struct("<QQQQII")
U64 = 2**64
COUNT_STEPS = 20
COUNT_LIMIT_S = 20.0
READ_TRIES = 5


def qemu_pids(name: str) -> list[int]:
    """Processes whose ``-name`` is this VM's. More than one is for the caller to judge."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                argv = stream.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        names = [value for option, value in zip(argv, argv[1:]) if option == "-name"]
        if any(re.match(rf"(guest=)?{re.escape(name)}(,|$)", value) for value in names):
            found.append(int(entry))
    return sorted(found)


def unit_failed(name: str) -> bool:
    """Whether its unit has given up, so that waiting is no use."""
    return subprocess.run(["systemctl", "is-failed", "--quiet", f"vmm-lab-vm@{name}.service"]).returncode == 0


def map_page(pid: int, page: int = STATUS_PAGE) -> mmap.mmap | None:
    """The status page in the process's RAM; None while there is no memfd that large."""
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        path = f"{folder}/{number}"
        try:
            if "memfd:" not in os.readlink(path) or os.stat(path).st_size < page + 4096:
                continue
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            return mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        finally:
            os.close(fd)
    return None


def read_page(page: mmap.mmap) -> dict[str, int]:
    return dict(zip(WORDS, struct.unpack_from(f"<{len(WORDS)}Q", page)))


def counts(page: mmap.mmap) -> bool:
    """Whether the counter moves ``COUNT_STEPS`` on in time."""
    first = read_page(page)["counter"]
    deadline = time.monotonic() + COUNT_LIMIT_S
    while read_page(page)["counter"] < first + COUNT_STEPS:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # a word in memory cannot be waited for
    return True


def record_problem(data: bytes, slot: int, slots: int) -> tuple[str | None, tuple[int, int, int]]:
    """What is wrong with the record in ``slot``, and its (sequence, nonce, counter)."""
    magic, sequence, nonce, counter, crc, reserved = HEADER.unpack_from(data)
    facts = (sequence, nonce, counter)
    if magic != RECORD_MAGIC:
        return "is no record", facts
    if zlib.crc32(data[:32] + bytes(4) + data[36:]) != crc:
        return "has a wrong checksum", facts
    if data[40:] != struct.pack("<Q", sequence * 0x9E3779B97F4A7C15 % U64) * ((RECORD_SIZE - 40) // 8):
        return "has a wrong pattern", facts
    if sequence % slots != slot:
        return f"holds record {sequence}, which belongs elsewhere", facts
    return None, facts


def check_disk(path: str, look: Callable[[], dict[str, int]]) -> tuple[list[str], int]:
    """Problems of all records the guest says it has written, and how many were checked. ``look`` reads its status page."""
    problems: list[str] = []
    published = look()["records"]
    fd = os.open(path, os.O_RDONLY)
    try:
        slots = os.fstat(fd).st_size // RECORD_SIZE
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        seen: list[tuple[int, int, int]] = []
        first = max(1, published - slots + 1)
        for sequence in range(first, published + 1):
            problem, facts = _read_record(fd, sequence % slots, slots)
            if problem is None and facts[0] < sequence:
                problem = f"holds old record {facts[0]}"
            if problem is not None:
                problems.append(f"slot {sequence % slots}, where record {sequence} was written, {problem}")
            else:
                seen.append(facts)
    finally:
        os.close(fd)
    problems += _order_problems(seen, look())
    return problems, published + 1 - first


def _read_record(fd: int, slot: int, slots: int) -> tuple[str | None, tuple[int, int, int]]:
    """A slot may be caught while the guest writes it: only what stays wrong is wrong."""
    for _ in range(READ_TRIES):
        problem, facts = record_problem(os.pread(fd, RECORD_SIZE, slot * RECORD_SIZE), slot, slots)
        if problem is None:
            break
        os.posix_fadvise(fd, slot * RECORD_SIZE, RECORD_SIZE, os.POSIX_FADV_DONTNEED)
        time.sleep(0.02)
    return problem, facts


def _order_problems(seen: list[tuple[int, int, int]], now: dict[str, int]) -> list[str]:
    """Two guests that wrote one disk show as records of the future or as a counter that goes back."""
    problems = []
    ahead = [sequence for sequence, _, _ in seen if sequence > now["records"] + 1]
    if ahead:
        problems.append(f"record {max(ahead)} is on the disk, the guest has written {now['records']}")
    mine = sorted(facts for facts in seen if facts[1] == now["nonce"])
    for (sequence, _, counter), (later, _, later_counter) in zip(mine, mine[1:]):
        if later_counter < counter:
            problems.append(f"the counter goes back from record {sequence} to {later}: {counter} to {later_counter}")
    return problems


def look(name: str, with_disk: bool, deadline: float) -> dict[str, object]:
    """All there is to say about one VM; waits until ``deadline`` (monotonic) for a guest that is still booting."""
    result: dict[str, object] = {"vm": name, "pids": [], "build_id": None, "counting": False, "problems": []}
    while True:
        pids = qemu_pids(name)
        page = map_page(pids[0]) if len(pids) == 1 else None
        if page is not None and read_page(page)["magic"] == PAGE_MAGIC and read_page(page)["records"]:
            break
        if time.monotonic() > deadline or (not pids and unit_failed(name)):
            break
        time.sleep(1)  # a look costs the emulated machine more than the wait
    result["pids"] = pids
    if len(pids) != 1:
        result["problems"] = [f"{len(pids)} processes bear its name"]
        return result
    exe = os.readlink(f"/proc/{pids[0]}/exe")
    match = re.search(r"/builds/([^/]+)/bin/", exe)
    result["build_id"] = match[1] if match else None
    if page is None or read_page(page)["magic"] != PAGE_MAGIC:
        result["problems"] = ["its guest shows no status page"]
        return result
    result["counting"] = counts(page)
    disk = f"/var/lib/vmm-lab/{name}.raw"  # not there when the guest has a drive of its own
    if with_disk and os.path.exists(disk):
        status = page
        problems, checked = check_disk(disk, lambda: read_page(status))
        result.update(problems=problems, records_checked=checked)
    result["page"] = read_page(page)
    return result


def main() -> int:
    request = json.loads(sys.argv[1])
    deadline = time.monotonic() + request["wait_s"]
    print(json.dumps([look(name, request["disk"], deadline) for name in request["vms"]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
