# SPDX-License-Identifier: GPL-3.0-or-later
"""The hand-over between real QEMUs, and everything that can go wrong in it.

Each way in which stock CPR loses a VM when it is used naively is a case here: the guest has to count on afterwards, in
exactly one process, and nothing may be left over.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import JournalError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_transfer import (
    Committed,
    CprTransfer,
    GuestLost,
    Limits,
    TakenBack,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import start_ticks
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import CommandPlan
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory, firmware

Note = Callable[[str, dict[str, Any]], None]
NIC = ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile="]


class Bench:
    """A source VM, its held monitor, and a hand-over that a test can meddle with at each journal step."""

    def __init__(self, source: LocalQemu, directory: Path) -> None:
        self.source = source
        self.monitor = source.monitor()
        self.workspace = directory / "workspace"
        self.workspace.mkdir()
        self.log = directory / "target.log"
        self.steps: list[str] = []
        self.targets: list[int] = []
        self.transfer: CprTransfer | None = None

    def argv(self, binary: Path, *, without: tuple[str, ...] = ()) -> list[str]:
        """The source's command line for ``binary``, without its monitor and without pairs whose value is named."""
        rest = iter(self.source.argv[1 + len(firmware(self.source.binary)) :])
        pairs = [(word, "" if word in ("-nodefaults",) else next(rest)) for word in rest]
        kept = [pair for pair in pairs if pair[0] != "-qmp" and pair[1] not in without]
        return [str(binary), *firmware(binary), *(word for pair in kept for word in pair if word)]

    def run(
        self, argv: list[str], on_step: Note | None = None, prepare_s: float = 30.0, downtime_s: float = 20.0
    ) -> Committed:
        def note(step: str, **facts: Any) -> None:
            self.steps.append(step)
            if "target_pid" in facts and facts["target_pid"] not in self.targets:
                self.targets.append(facts["target_pid"])
            if on_step:
                on_step(step, facts)

        self.transfer = CprTransfer(
            self.source.pid, self.monitor, self.workspace, self.log, Limits(prepare_s, downtime_s), note
        )
        return self.transfer.run(CommandPlan(argv), {}, (os.getuid(), os.getgid()))

    def assert_source_runs_on(self) -> None:
        """The guest counts, in the source, whose settings are as before; the target is gone and reaped."""
        self.source.wait_counting()
        assert self.monitor.execute("query-status")["status"] == "running"
        assert self.monitor.execute("query-migrate-parameters").get("mode", "normal") == "normal"
        enabled = {item["capability"] for item in self.monitor.execute("query-migrate-capabilities") if item["state"]}
        assert enabled == set()
        for pid in self.targets:
            with pytest.raises(ProcessLookupError):
                start_ticks(pid)

    def close(self) -> None:
        self.monitor.close()
        if self.transfer:
            self.transfer.close()
        for pid in self.targets:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


@pytest.fixture
def bench(start_qemu: QemuFactory, qemu_old: Path, tmp_path: Path) -> Iterator[Bench]:
    source = start_qemu("source", binary=qemu_old, machine="pc-q35-10.2", extra=NIC)
    source.wait_counting()
    made = Bench(source, tmp_path)
    yield made
    made.close()


def test_guest_moves_and_counts_on(bench: Bench, qemu_new: Path) -> None:
    before = bench.source.counter()

    committed = bench.run(bench.argv(qemu_new))
    assert bench.transfer is not None
    bench.transfer.release_source()

    assert bench.source.wait_counting() > before
    assert bench.source.process.wait(10) == -signal.SIGKILL
    assert committed.resume_us > committed.stop_us > 0
    assert bench.steps == ["spawned", "handing-over"]
    assert os.readlink(f"/proc/{committed.target_pid}/exe") == str(qemu_new)


def test_guest_moves_back_to_the_older_build(
    start_qemu: QemuFactory, qemu_old: Path, qemu_new: Path, tmp_path: Path
) -> None:
    source = start_qemu("source", binary=qemu_new, machine="pc-q35-10.2", extra=NIC)
    source.wait_counting()
    bench = Bench(source, tmp_path)
    try:
        bench.run(bench.argv(qemu_old))
        source.wait_counting()
    finally:
        bench.close()


def test_target_that_lacks_a_device_is_taken_back(bench: Bench, qemu_new: Path) -> None:
    """Without return-path the source would call itself completed and the VM would be lost."""
    with pytest.raises(TakenBack, match="exited with status 1, last words: .*Unknown section or instance"):
        bench.run(bench.argv(qemu_new, without=(NIC[1], NIC[3])))
    bench.assert_source_runs_on()


def test_target_of_another_machine_type_is_taken_back(bench: Bench, qemu_new: Path) -> None:
    argv = [word.replace("pc-q35-10.2", "pc-q35-10.1") for word in bench.argv(qemu_new)]
    with pytest.raises(TakenBack, match="the new process exited with status 1"):
        bench.run(argv)
    bench.assert_source_runs_on()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/bin/false"], "the new process exited with status 1"),
        (["/nonexistent/qemu"], "cannot start /nonexistent/qemu"),
        (["/bin/sh", "-c", "kill -SEGV $$"], "the new process was killed by SIGSEGV"),
    ],
    ids=["exits", "missing", "crashes"],
)
def test_program_that_does_not_start_is_taken_back(bench: Bench, argv: list[str], why: str) -> None:
    with pytest.raises(TakenBack, match=why):
        bench.run(argv)
    bench.assert_source_runs_on()


@pytest.mark.parametrize("step", ["spawned", "handing-over"])
def test_target_killed_at_a_step_is_taken_back(bench: Bench, qemu_new: Path, step: str) -> None:
    def kill(at: str, facts: dict[str, Any]) -> None:
        if at == step:
            os.kill(facts["target_pid"], signal.SIGKILL)

    with pytest.raises(TakenBack, match="the new process was killed by SIGKILL"):
        bench.run(bench.argv(qemu_new), kill)
    bench.assert_source_runs_on()


def test_target_that_hangs_before_it_is_ready_is_taken_back(bench: Bench, qemu_new: Path) -> None:
    def freeze(at: str, facts: dict[str, Any]) -> None:
        if at == "spawned":
            os.kill(facts["target_pid"], signal.SIGSTOP)

    with pytest.raises(TakenBack, match="was not ready within 2 s"):
        bench.run(bench.argv(qemu_new), freeze, prepare_s=2.0)
    bench.assert_source_runs_on()


def test_pause_over_budget_is_taken_back(bench: Bench, qemu_new: Path) -> None:
    """The target hangs once the source has connected, which pauses the guest and waits for an answer that does not come."""

    def freeze_when_connected(at: str, facts: dict[str, Any]) -> None:
        def wait_and_freeze() -> None:
            while not _is_connected(bench.workspace / "main.sock"):
                time.sleep(0)
            os.kill(facts["target_pid"], signal.SIGSTOP)

        if at == "spawned":
            threading.Thread(target=wait_and_freeze).start()

    with pytest.raises(TakenBack, match="the pause exceeded its budget of 300 ms"):
        bench.run(bench.argv(qemu_new), freeze_when_connected, downtime_s=0.3)
    bench.assert_source_runs_on()


def test_full_journal_before_the_pause_is_taken_back(bench: Bench, qemu_new: Path) -> None:
    def refuse(at: str, facts: dict[str, Any]) -> None:
        if at == "handing-over":
            raise JournalError("no space left")

    with pytest.raises(TakenBack, match="no space left"):
        bench.run(bench.argv(qemu_new), refuse)
    bench.assert_source_runs_on()


def test_taken_back_vm_can_be_upgraded_later(bench: Bench, qemu_new: Path) -> None:
    with pytest.raises(TakenBack):
        bench.run(["/bin/false"])
    for path in bench.workspace.iterdir():
        path.unlink()

    bench.run(bench.argv(qemu_new))

    bench.source.wait_counting()


def test_source_that_dies_before_the_hand_over_is_a_lost_guest_and_leaves_no_target(
    bench: Bench, qemu_new: Path
) -> None:
    def kill_source(at: str, facts: dict[str, Any]) -> None:
        if at == "handing-over":
            bench.source.process.kill()
            bench.source.process.wait()

    with pytest.raises(GuestLost, match="died before the hand-over"):
        bench.run(bench.argv(qemu_new), kill_source)
    with pytest.raises(ProcessLookupError):
        start_ticks(bench.targets[0])


def test_interrupted_before_the_pause_is_undone_by_the_next_engine(bench: Bench, qemu_new: Path) -> None:
    """The engine 'dies' (an exception it does not handle); another one settles it from outside."""

    class Died(BaseException):
        pass

    def die(at: str, facts: dict[str, Any]) -> None:
        if at == "handing-over":
            raise Died

    with pytest.raises(Died):
        bench.run(bench.argv(qemu_new), die)
    assert bench.transfer is not None
    bench.transfer.close()

    bench.transfer = CprTransfer(
        bench.source.pid, bench.monitor, bench.workspace, bench.log, Limits(30, 30), lambda *_a, **_k: None
    )
    with pytest.raises(TakenBack, match="interrupted"):
        bench.transfer.resume(bench.targets[0])
    bench.assert_source_runs_on()


def test_interrupted_after_completion_is_finished_by_the_next_engine(bench: Bench, qemu_new: Path) -> None:
    """Source completed, target loaded and waiting: nobody runs the guest until the next engine tells the target to."""

    class Died(BaseException):
        pass

    transfer = CprTransfer(
        bench.source.pid,
        bench.monitor,
        bench.workspace,
        bench.log,
        Limits(30, 30),
        lambda step, **facts: bench.targets.append(facts["target_pid"]) if step == "spawned" else None,
    )

    def die() -> Committed:
        raise Died

    transfer._commit = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        transfer.run(CommandPlan(bench.argv(qemu_new)), {}, (0, 0))
    transfer.close()
    bench.source.assert_not_counting()

    bench.transfer = CprTransfer(
        bench.source.pid, bench.monitor, bench.workspace, bench.log, Limits(30, 30), lambda *_a, **_k: None
    )
    committed = bench.transfer.resume(bench.targets[0])
    bench.transfer.release_source()

    assert committed.target_pid == bench.targets[0]
    bench.source.wait_counting()


def test_stale_completed_migration_is_not_taken_for_ours(bench: Bench, qemu_new: Path, tmp_path: Path) -> None:
    """A VM that was once saved to a file and continued still says 'completed': its target must not be started."""
    bench.monitor.execute("migrate", {"uri": f"file:{tmp_path / 'saved'}"})
    while bench.monitor.execute("query-migrate")["status"] != "completed":
        bench.source.counter()
    while bench.monitor.execute("query-status")["status"] != "postmigrate":
        bench.source.counter()
    bench.monitor.execute("cont")
    bench.source.wait_counting()

    def kill(at: str, facts: dict[str, Any]) -> None:
        if at == "spawned":
            os.kill(facts["target_pid"], signal.SIGKILL)

    with pytest.raises(TakenBack):
        bench.run(bench.argv(qemu_new), kill)
    bench.assert_source_runs_on()


def test_target_is_reachable_by_its_private_monitor_only_by_root(bench: Bench, qemu_new: Path) -> None:
    bench.run(bench.argv(qemu_new))

    path = bench.workspace / "monitor.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert bench.transfer is not None
    bench.transfer.close()
    with QmpClient.connect(str(path)) as client:
        assert client.execute("query-status")["status"] == "running"


def _is_connected(path: Path) -> bool:
    """Tell whether somebody has connected to ``path``: then there is a second socket of that name, accepted or not yet."""
    return Path("/proc/net/unix").read_text().count(f" {path}\n") > 1
