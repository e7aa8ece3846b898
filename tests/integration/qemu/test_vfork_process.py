# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a VM in the mode cpr-vfork: what the new one has of the old one, and what the old one leaves at its end."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import MACHINE, NIC, Vm, await_that, lives

NOBODY = 65534
HANGS = ("-global", "migration.x-cpr-vfork-fault=ready:hang")
Start = Callable[..., Vm]


@pytest.fixture
def pidfile(tmp_path: Path) -> Path:
    return tmp_path / "vm.pid"


# --- the end of the old process


@pytest.mark.parametrize("way", ["quit", signal.SIGTERM, signal.SIGHUP], ids=["quit", "SIGTERM", "SIGHUP"])
def test_old_process_that_ends_in_order_takes_nothing_from_the_new_one(
    start: Start, qemu_new: Path, pidfile: Path, tmp_path: Path, way: Any
) -> None:
    served = tmp_path / "served.sock"
    extra = ["-chardev", f"socket,id=served,path={served},server=on,wait=off", "-mon", "chardev=served,mode=control"]
    vm = start(extra=[*NIC, *extra, "-pidfile", str(pidfile)])
    listener = _listener(vm.pid, served)
    command = [word.replace(f"path={served}", f"fd={listener}") for word in vm.command(qemu_new)]
    vm.begin(command, fds=[listener])
    info = vm.end()
    assert info["phase"] == "running", info

    if way == "quit":
        vm.monitor.execute("quit")
    else:
        os.kill(vm.pid, way)

    assert vm.qemu.process.wait(20) == 0
    assert pidfile.read_text() == f"{info['child-pid']}\n"
    with QmpClient.connect(str(served)) as monitor:
        assert monitor.execute("query-status")["status"] == "running"
    vm.qemu.wait_counting()


def test_old_process_that_lost_the_guest_with_the_new_one_ends_with_a_failure(vm: Vm, qemu_new: Path) -> None:
    assert vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=taken:kill")["phase"] == "lost"

    vm.monitor.execute("quit")

    assert vm.qemu.process.wait(20) == 1


def test_old_process_that_keeps_the_guest_ends_as_ever(start: Start, qemu_new: Path, pidfile: Path) -> None:
    vm = start(extra=["-pidfile", str(pidfile)])
    assert vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=committed:kill")["phase"] == "aborted"
    assert pidfile.read_text() == f"{vm.pid}\n"

    vm.monitor.execute("quit")

    assert vm.qemu.process.wait(20) == 0
    assert not pidfile.exists()
    assert not Path(vm.qemu.qmp_path).exists()


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_new_process_that_hangs_ends_with_the_old_one(vm: Vm, qemu_new: Path, way: signal.Signals) -> None:
    vm.begin(vm.command(qemu_new, *HANGS))
    child = int(vm.monitor.wait_event({"CPR_VFORK"}, 30).data["child-pid"])
    await_that(lambda: "fault ready:hang" in vm.qemu.log_path.read_text())
    pidfd = os.pidfd_open(child)

    os.kill(vm.pid, way)

    vm.qemu.process.wait(20)
    assert select.select([pidfd], [], [], 20)[0], "the new process is left over"
    os.close(pidfd)


# --- -pidfile and -daemonize


def test_pid_file_goes_over_with_the_guest(start: Start, qemu_old: Path, qemu_new: Path, pidfile: Path) -> None:
    vm = start(extra=["-pidfile", str(pidfile)])
    first = vm.pid
    for binary in (qemu_new, qemu_old):
        vm.begin(vm.command(binary, *HANGS), **{"prepare-timeout": 500})
        assert vm.end()["phase"] == "aborted"
        assert pidfile.read_text() == f"{vm.pid}\n"
        assert _lock_holder(pidfile) == vm.pid

        before = vm.pid
        info = vm.hand_over(binary)

        assert info["phase"] == "running", info
        assert pidfile.read_text() == f"{info['child-pid']}\n"
        assert _lock_holder(pidfile) == before, "nobody holds it while both live"
        vm.follow(info)
        await_that(lambda: _lock_holder(pidfile) == vm.pid)
    assert vm.pid != first

    vm.monitor.execute("quit")

    await_that(lambda: not pidfile.exists())


@pytest.mark.parametrize("extra", [True, False], ids=["another", "none-before"])
def test_pid_file_that_is_not_the_old_ones_is_refused(
    start: Start, qemu_new: Path, pidfile: Path, tmp_path: Path, extra: bool
) -> None:
    vm = start(extra=["-pidfile", str(pidfile)] if extra else [])
    other = tmp_path / "other.pid"
    other.write_text("4711\n")

    info = vm.hand_over(qemu_new, "-pidfile", str(other))

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert ("is not the pid file" if extra else "has no pid file") in vm.qemu.log_path.read_text()
    assert other.read_text() == "4711\n"
    assert pidfile.exists() == extra
    vm.assert_runs_on()


def test_daemon_is_handed_over_by_its_own_command_line(
    start: Start, qemu_old: Path, qemu_new: Path, pidfile: Path, tmp_path: Path
) -> None:
    vm = start(qemu_old)
    command = vm.command(qemu_old, "-daemonize", "-pidfile", str(pidfile), "-D", str(tmp_path / "qemu.log"))
    vm.monitor.close()
    vm.qemu.stop()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    vm.pid = int(pidfile.read_text())
    vm.monitor = QmpClient.connect(command[command.index("-qmp") + 1].removeprefix("unix:").partition(",")[0])
    session = os.getsid(vm.pid)
    for binary in (qemu_new, qemu_old):
        again = [str(binary) if word == command[0] else word for word in command]
        again = [
            str(binary.parent.parent / "share" / "qemu") if word.endswith("/share/qemu") else word for word in again
        ]
        vm.begin(again)
        info = vm.end()
        assert info["phase"] == "running", (info, (tmp_path / "qemu.log").read_text())
        vm.monitor.execute("quit")
        vm.monitor.close()
        await_that(lambda: not lives(vm.pid) or _is_zombie(vm.pid))
        vm.pid = info["child-pid"]
        assert int(pidfile.read_text()) == vm.pid
        assert os.getsid(vm.pid) == session
        assert os.readlink(f"/proc/{vm.pid}/cwd") == "/"
        vm.monitor = QmpClient.connect(command[command.index("-qmp") + 1].removeprefix("unix:").partition(",")[0])
        assert vm.monitor.execute("query-status")["status"] == "running"

    vm.monitor.execute("quit")

    await_that(lambda: not pidfile.exists())


# --- listening sockets


@pytest.fixture(params=["unix", "abstract", "tcp", "vnc"])
def listens(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Any]:
    """Options with which a VM listens, and where that is."""
    if request.param == "unix":
        return _chardev(f"path={tmp_path}/served.sock"), f"{tmp_path}/served.sock"
    if request.param == "abstract":
        return _chardev(f"path={tmp_path}/served,abstract=on,tight=on"), f"\0{tmp_path}/served"
    if request.param == "vnc":
        return ["-vnc", f"unix:{tmp_path}/vnc.sock"], f"{tmp_path}/vnc.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _chardev(f"host=127.0.0.1,port={port}"), ("127.0.0.1", port)


def test_listening_socket_is_found_by_its_address(
    start: Start, qemu_old: Path, qemu_new: Path, listens: tuple[list[str], Any]
) -> None:
    options, address = listens
    vm = start(extra=[*NIC, *options])
    socket_of_vm = _listening_at(vm.pid, address)
    for binary in (qemu_new, qemu_old):
        assert vm.hand_over(binary, *HANGS, **{"prepare-timeout": 500})["phase"] == "aborted"
        assert vm.hand_over(binary, "-global", "migration.x-cpr-vfork-fault=loaded:exit")["phase"] == "aborted"
        assert _greets(address), "the old one cannot be reached any more"

        info = vm.hand_over(binary)

        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        assert _listening_at(vm.pid, address) == socket_of_vm, "it was made anew"
        assert _greets(address)


def test_listening_socket_that_the_new_command_lacks_is_not_kept(start: Start, qemu_new: Path, tmp_path: Path) -> None:
    served = tmp_path / "served.sock"
    vm = start(extra=_chardev(f"path={served}"))
    command = vm.command(qemu_new)
    vm.begin(command[: command.index("-chardev")])

    info = vm.end()

    assert info["phase"] == "running", info
    assert _listening_at(vm.pid, str(served))
    assert not _listening_at(info["child-pid"], str(served))


# --- options of the process


@pytest.mark.parametrize(
    ("options", "why"),
    [("chroot=/", "what the new QEMU needs to start lies outside"), ("exit-with-parent=on", "is a child of the old")],
)
def test_vm_that_cannot_have_a_successor_is_refused(start: Start, qemu_new: Path, options: str, why: str) -> None:
    vm = start(extra=["-run-with", options])

    with pytest.raises(QmpCommandError, match=re.escape(why)):
        vm.begin(vm.command(qemu_new))

    assert vm.monitor.execute("query-cpr-vfork")["phase"] == "idle"
    assert vm.monitor.execute("query-status")["status"] == "running"


def test_successor_that_would_end_with_the_old_process_is_refused(vm: Vm, qemu_new: Path) -> None:
    info = vm.hand_over(qemu_new, "-run-with", "exit-with-parent=on")

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert "is a child of the old" in vm.qemu.log_path.read_text()
    vm.assert_runs_on()


@pytest.mark.parametrize(
    "options",
    [
        ["-sandbox", "on"],
        ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=allow,resourcecontrol=deny"],
        ["-sandbox", "on,elevateprivileges=children"],
        ["-run-with", "async-teardown=on"],
        ["-name", "guest=vm,process=my-vm"],
        ["-msg", "timestamp=on,guest-name=on"],
    ],
    ids=lambda options: "".join(options),
)
def test_options_that_are_applied_anew(start: Start, qemu_old: Path, qemu_new: Path, options: list[str]) -> None:
    vm = start(extra=[*NIC, *options])
    before = _options_of_process(vm.pid)
    for binary in (qemu_new, qemu_old):
        info = vm.hand_over(binary)
        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        vm.qemu.wait_counting()
        assert _options_of_process(vm.pid) == before


def test_threads_have_names_in_the_new_process_too(start: Start, qemu_old: Path) -> None:
    vm = start(extra=["-name", "guest=vm,debug-threads=on"])

    info = vm.hand_over(qemu_old)

    assert any(name.startswith("CPU 0") for name in _threads(info["child-pid"]))


def test_messages_of_a_new_process_bear_time_and_name(start: Start, qemu_new: Path) -> None:
    vm = start(extra=["-msg", "timestamp=on,guest-name=on"])

    vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=ready:exit")

    words = vm.qemu.log_path.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+Z vm \S*qemu-system-x86_64: cpr-vfork: fault ready:exit", words, re.M), words


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all may pass through, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_process_that_dropped_its_privileges_has_a_successor_of_the_same_user(
    public: Path, qemu_old: Path, qemu_new: Path
) -> None:
    pid_file = public / "vm.pid"
    binary = public / "new" / "bin" / "qemu-system-x86_64"
    binary.parent.mkdir(parents=True)
    shutil.copy(qemu_new, binary)
    shutil.copytree(qemu_new.parent.parent / "share", public / "new" / "share")
    (public / "vm").mkdir()
    os.chown(public / "vm", NOBODY, NOBODY)
    user = ["-run-with", f"user={NOBODY}:{NOBODY}", "-pidfile", str(pid_file)]
    factory = QemuFactory(public, qemu_old, "tcg")
    try:
        vm = Vm(factory("vm", machine=MACHINE, extra=user, disk_owner=NOBODY))
        pid_file.chmod(0o600)
        assert os.stat(f"/proc/{vm.pid}").st_uid == NOBODY

        info = vm.hand_over(binary)

        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        vm.qemu.wait_counting()
        assert _ids(vm.pid) == {"Uid": f"{NOBODY} " * 4, "Gid": f"{NOBODY} " * 4, "Groups": f"{NOBODY} "}
        assert pid_file.read_text() == f"{vm.pid}\n"
        vm.monitor.close()
    finally:
        factory.close()


# --- the log file


def test_log_file_keeps_the_words_of_both(start: Start, qemu_new: Path, tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    vm = start(extra=[*NIC, "-D", str(log), "-trace", "enable=cpr_*"])
    log.touch()
    vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=loaded:exit")
    aborted = log.read_text()
    assert "cpr_vfork_phase aborted" in aborted

    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    words = log.read_text()
    assert words.startswith(aborted), "it was cut off"
    assert "\0" not in words
    assert words.count("cpr_vfork_pass given to new: 1") == 1
    assert words.count("cpr_vfork_pass old to given: 1") == 1
    assert all(line.startswith("cpr_") or "cpr_" in line for line in words.splitlines()), "lines were written over"


# --- what is inherited


def test_new_process_lives_where_the_old_one_does(start: Start, qemu_new: Path) -> None:
    wrapper = ["unshare", "--net", "--uts", "--ipc", "prlimit", "--core=123456", "--memlock=7654321"]
    vm = start(wrapper=[*wrapper, "choom", "-n", "123", "--", "nice", "-n", "3", "env", "OF_THE_VM=1"])
    before = _circumstances(vm.pid)
    assert before["ns/net"] != os.readlink("/proc/self/ns/net")
    assert "123456" in before["limits"]

    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    assert _circumstances(info["child-pid"]) == before


# --- monitors


def test_human_monitor_hands_over_and_tells(vm: Vm, qemu_new: Path) -> None:
    def hmp(line: str) -> str:
        return str(vm.monitor.execute("human-monitor-command", {"command-line": line}))

    assert "idle, may run the guest: old" in hmp("info cpr_vfork")
    assert "Hand-over" not in hmp("info migrate")
    command = vm.command(qemu_new)
    hmp("migrate_set_parameter mode cpr-vfork")
    hmp(f"migrate_set_parameter cpr-exec-command {' '.join(command)}")
    assert hmp("cpr_vfork_set -r 2000 30000") == ""
    vm.monitor.drain_events()
    assert hmp("migrate -d") == ""
    info = vm.end()

    assert (info["phase"], info["rehearsal"]) == ("aborted", True)
    for line in ("info cpr_vfork", "info migrate"):
        said = hmp(line)
        assert "aborted, may run the guest: old, rehearsal" in said
        assert f"process {info['child-pid']}" in said
        assert "it was a rehearsal" in said
        assert re.search(r"loaded\s+\d+ us", said)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("0", "0 ms is not possible"),
        ("5000000000", "5000000000 ms is not possible"),
        ("9 9 x", "'x' is not"),
        ("9 9 999", "is not open"),
    ],
)
def test_human_monitor_refuses_nonsense(vm: Vm, arguments: str, why: str) -> None:
    said = vm.monitor.execute("human-monitor-command", {"command-line": f"cpr_vfork_set {arguments}"})

    assert why in said


def test_query_migrate_tells_of_the_hand_over_in_this_mode_only(vm: Vm, qemu_new: Path) -> None:
    assert "cpr-vfork" not in vm.monitor.execute("query-migrate")
    info = vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=loaded:exit")

    told = vm.monitor.execute("query-migrate")["cpr-vfork"]

    assert told == info
    assert (told["phase"], told["owner"]) == ("aborted", "old")
    assert "exited with status 3" in told["reason"]


# --- looking at processes


def _chardev(where: str) -> list[str]:
    return ["-chardev", f"socket,id=served,{where},server=on,wait=off", "-mon", "chardev=served,mode=control"]


def _greets(address: Any) -> bool:
    """Whether a client gets the first words of a monitor or of VNC."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(address)
        return client.recv(3) in (b'{"Q', b"RFB")


def _listening_at(pid: int, address: Any) -> set[str]:
    """The sockets with which ``pid`` listens at ``address``, as links of ``/proc/PID/fd``."""
    if isinstance(address, tuple):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        # 0A: it listens.
        inodes = {row[9] for row in rows if row[1].endswith(f":{address[1]:04X}") and row[3] == "0A"}
    else:
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        # Flags 00010000: it listens.
        inodes = {row[6] for row in rows if row[-1] == address.replace("\0", "@") and row[3] == "00010000"}
    links = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    return links & {f"socket:[{inode}]" for inode in inodes}


def _listener(pid: int, path: Path) -> int:
    """The descriptor with which ``pid`` listens at ``path``."""
    (link,) = _listening_at(pid, str(path))
    return next(int(name) for name in os.listdir(f"/proc/{pid}/fd") if os.readlink(f"/proc/{pid}/fd/{name}") == link)


def _lock_holder(path: Path) -> int:
    """The process that holds the POSIX lock of ``path``, of those that the kernel lists; 0: none."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "POSIX" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return 0


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def _ids(pid: int) -> dict[str, str]:
    return {key: " ".join(_status(pid)[key].split()) + " " for key in ("Uid", "Gid", "Groups")}


def _options_of_process(pid: int) -> dict[str, str]:
    return {key: _status(pid)[key] for key in ("Name", "Seccomp", "NoNewPrivs")}


def _threads(pid: int) -> list[str]:
    return [Path(f"/proc/{pid}/task/{task}/comm").read_text().strip() for task in os.listdir(f"/proc/{pid}/task")]


def _circumstances(pid: int) -> dict[str, str]:
    """Where a process lives, as the kernel tells it."""
    proc = Path(f"/proc/{pid}")
    spaces = {f"ns/{name}": os.readlink(proc / "ns" / name) for name in os.listdir(proc / "ns")}
    links = {name: os.readlink(proc / name) for name in ("cwd", "root")}
    files = {name: (proc / name).read_text() for name in ("cgroup", "limits", "oom_score_adj", "loginuid", "sessionid")}
    # What the old process told the new one shows there for as long as that lives, and goes no further.
    environment = {"environ": re.sub(r"QEMU_CPR_VFORK\w*=[^\0]*\0", "", (proc / "environ").read_text())}
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    status = {key: _status(pid)[key] for key in ("Umask", "Uid", "Gid", "Groups", "CapEff", "Cpus_allowed")}
    return {**spaces, **links, **files, **environment, **status, "nice": stat[16], "group": stat[2], "session": stat[3]}
