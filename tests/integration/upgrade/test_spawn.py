# SPDX-License-Identifier: GPL-3.0-or-later
"""A process started as a twin is what its model is: the kernel's own account of both is compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import SpawnError, spawn_like, start_ticks

NOBODY = 65534
REPORT = """
import json, os, resource, signal, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
umask = os.umask(0)
os.set_blocking(int(sys.argv[1]), True)
report = {
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(), "umask": umask,
    "environment": dict(os.environ), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "nice": os.nice(0),
    "net": os.readlink("/proc/self/ns/net"),
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)),
    "blocked": status["SigBlk"].strip(), "ignored": status["SigIgn"].strip(), "no_new_privs": status["NoNewPrivs"].strip(),
    "session": os.getsid(0) == os.getpid(), "cpus": sorted(os.sched_getaffinity(0)),
    "cgroup": open("/proc/self/cgroup").read(),
}
os.write(int(sys.argv[1]), json.dumps(report).encode())
"""


@pytest.fixture
def model(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that differs from this one in every way a twin has to follow."""

    def differ() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (321, 654))
        os.nice(3)
        os.umask(0o027)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--groups=65534,9",
        "--no-new-privs",
        "sleep",
        "600",
    ]
    if os.geteuid() != 0:
        pytest.fail("twins of other users can only be started by root; run the integration tests as root")
    process = subprocess.Popen(
        ["unshare", "--net", *command],
        preexec_fn=differ,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "MODEL": "yes"},
    )
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
        os.sched_yield()
    yield process
    process.kill()
    process.wait()


def _spawn_report(pid: int, tmp_path: Path) -> dict[str, Any]:
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:2]:
        os.chmod(parent, 0o755)
    read_fd, write_fd = os.pipe()
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    child = spawn_like(pid, ["/usr/bin/python3", "-S", str(script), "77"], {77: write_fd}, tmp_path / "log")
    os.close(write_fd)
    with os.fdopen(read_fd) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    assert text, (tmp_path / "log").read_text()
    report: dict[str, Any] = json.loads(text)
    return report


def test_twin_is_what_its_model_is(model: subprocess.Popen[bytes], tmp_path: Path) -> None:
    report = _spawn_report(model.pid, tmp_path)

    assert report["uid"] == report["gid"] == [NOBODY] * 3
    assert sorted(report["groups"]) == [9, NOBODY]
    assert report["cwd"] == str(tmp_path)
    assert report["umask"] == 0o027
    assert report["environment"].get("MODEL") == "yes"
    assert "PYTEST_CURRENT_TEST" not in report["environment"]
    assert report["nofile"] == [321, 654]
    assert report["nice"] == os.getpriority(os.PRIO_PROCESS, model.pid)
    assert report["net"] == os.readlink(f"/proc/{model.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert report["no_new_privs"] == "1"
    assert report["cpus"] == sorted(os.sched_getaffinity(model.pid))
    assert report["cgroup"] == Path(f"/proc/{model.pid}/cgroup").read_text()


def test_twin_has_the_wanted_descriptors_and_a_clean_start(model: subprocess.Popen[bytes], tmp_path: Path) -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)

    report = _spawn_report(model.pid, tmp_path)
    os.close(leaked)

    assert report["fds"] == [0, 1, 2, 77]
    assert report["blocked"] == "0000000000000000"
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 belong to the C library, which lets nobody change them.
    of_others = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))
    assert int(report["ignored"], 16) & ~of_others == 0
    assert report["session"] is True


def test_descriptors_that_swap_places_arrive(tmp_path: Path) -> None:
    """Numbers wanted may be the very numbers under which others of them live here."""
    first, second = os.open(tmp_path / "one", os.O_RDWR | os.O_CREAT), os.open(tmp_path / "two", os.O_RDWR | os.O_CREAT)
    script = f"echo first >&{second}; echo second >&{first}"

    child = spawn_like(os.getpid(), ["/bin/bash", "-c", script], {first: second, second: first}, tmp_path / "log")
    os.waitpid(child, 0)

    assert ((tmp_path / "one").read_text(), (tmp_path / "two").read_text()) == ("first\n", "second\n")


def test_program_that_cannot_be_executed_is_told_and_reaped(tmp_path: Path) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()

    with pytest.raises(SpawnError, match="cannot start /nonexistent/qemu: cannot execute it: .*No such file"):
        spawn_like(os.getpid(), ["/nonexistent/qemu"], {}, tmp_path / "log")

    assert children.read_text() == before


def test_chroot_is_refused(tmp_path: Path) -> None:
    jailed = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; os.chroot({str(tmp_path)!r}); print(flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
    )
    assert jailed.stdout is not None
    jailed.stdout.readline()
    try:
        with pytest.raises(SpawnError, match="runs in a chroot"):
            spawn_like(jailed.pid, ["/bin/true"], {}, tmp_path / "log")
    finally:
        jailed.kill()
        jailed.wait()


def test_start_ticks_of_no_process() -> None:
    with pytest.raises(ProcessLookupError):
        start_ticks(2**22 - 1)
