# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of the tests tells the truth, about failures and about what was not run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import step_runner
from run_tests import BY_NAME_ONLY, STEPS, select, summary
from step_runner import Outcome, Step, StepRunner

PYTHON = sys.executable


def run(tmp_path: Path, *steps: Step, cpus: int = 2) -> dict[str, Outcome]:
    outcomes = StepRunner(list(steps), tmp_path / "logs", dict(os.environ), tmp_path, cpus).run()
    return {outcome.step.name: outcome for outcome in outcomes}


def python(name: str, code: str, **more: object) -> Step:
    return Step(name, "group", (PYTHON, "-c", code), **more)  # type: ignore[arg-type]


def pytest_step(tmp_path: Path, content: str, **more: object) -> Step:
    (tmp_path / "test_it.py").write_text(content)
    command = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    return Step("it", "group", command, pytest=True, **more)  # type: ignore[arg-type]


def test_success_and_failure_are_told_apart(tmp_path: Path) -> None:
    outcomes = run(tmp_path, python("good", ""), python("bad", "raise SystemExit(3)"))
    assert (outcomes["good"].state, outcomes["good"].passed, outcomes["good"].failed) == ("ok", 1, 0)
    assert (outcomes["bad"].state, outcomes["bad"].passed, outcomes["bad"].failed) == ("failed", 0, 1)


def test_output_of_a_failure_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, python("bad", "print('the ' + 'reason'); raise SystemExit(1)"))
    assert "the reason" in capfd.readouterr().out


def test_a_step_without_what_it_needs_fails_and_a_clean_up_runs(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        python("up", "raise SystemExit(1)"),
        python("use", "", needs=("up",)),
        python("down", "open('cleaned', 'w')", after=("use",), always=True),
    )
    assert (outcomes["use"].state, outcomes["use"].failed) == ("not run", 1)
    assert outcomes["use"].remarks == ("needs up",)
    assert (tmp_path / "cleaned").exists()


def test_what_cannot_run_here_is_told_and_is_no_failure(tmp_path: Path) -> None:
    outcome = run(tmp_path, python("next", "", unless="there is no such Python"))["next"]
    assert (outcome.state, outcome.failed, outcome.remarks) == ("not run", 0, ("there is no such Python",))


def test_a_step_that_hangs_is_ended(tmp_path: Path) -> None:
    outcome = run(tmp_path, python("hang", "import signal; signal.pause()", limit_s=1))["hang"]
    assert (outcome.state, outcome.remarks) == ("failed", ("did not end in 1 s",))


def test_steps_wait_for_cores(tmp_path: Path) -> None:
    alone = "import os; os.mkdir('busy'); import time; time.sleep(0.2); os.rmdir('busy')"
    outcomes = run(tmp_path, *(python(name, alone, cpus=2) for name in "abc"))
    assert {outcome.state for outcome in outcomes.values()} == {"ok"}


@pytest.mark.parametrize(
    ("content", "more", "state", "counts"),
    [
        pytest.param("def test_a(): pass", {}, "ok", (1, 0, 0), id="passes"),
        pytest.param("def test_a(): assert 0\ndef test_b(): pass", {}, "failed", (1, 1, 0), id="fails"),
        pytest.param("import nothing_of_the_kind", {}, "failed", (0, 1, 0), id="not-collected"),
        pytest.param("", {}, "failed", (0, 1, 0), id="no-test"),
        pytest.param(
            "import pytest\ndef test_a(): pytest.skip('no such thing here')\ndef test_b(): pass",
            {},
            "failed",
            (1, 1, 1),
            id="skips",
        ),
        pytest.param(
            "import pytest\ndef test_a(): pytest.skip('no such thing here')\ndef test_b(): pass",
            {"allowed_skips": ("no such thing",)},
            "ok",
            (1, 0, 1),
            id="may-skip",
        ),
    ],
)
def test_pytest_is_judged_by_its_report(
    tmp_path: Path, content: str, more: dict[str, object], state: str, counts: tuple[int, int, int]
) -> None:
    outcome = run(tmp_path, pytest_step(tmp_path, content, **more))["it"]
    assert (outcome.state, (outcome.passed, outcome.failed, outcome.skipped)) == (state, counts)


def test_a_crash_of_pytest_is_no_success(tmp_path: Path) -> None:
    outcome = run(tmp_path, pytest_step(tmp_path, "import os\ndef test_a(): os._exit(0)"))["it"]
    assert (outcome.state, outcome.failed) == ("failed", 1)


def test_an_interrupt_ends_what_runs_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(step_runner, "END_GRACE_S", 10)
    interrupting = "import os, signal; os.kill(os.getppid(), signal.SIGINT); signal.pause()"
    outcomes = run(
        tmp_path,
        python("use", interrupting),
        python("later", "", after=("use",)),
        python("down", "open('cleaned', 'w')", after=("use", "later"), always=True),
    )
    signal.signal(signal.SIGINT, previous)
    assert [outcomes[name].state for name in ("use", "later", "down")] == ["failed", "not run", "ok"]
    assert (tmp_path / "cleaned").exists()


def test_a_group_brings_what_it_needs_and_the_clean_up() -> None:
    assert [step.name for step in select(["molecule"])] == ["build-qemu", "lab-up", "molecule", "lab-down"]


def test_what_takes_long_is_run_by_its_name_only() -> None:
    assert not {step.group for step in select([])} & set(BY_NAME_ONLY)
    assert {step.group for step in STEPS} - {step.group for step in select([])} == set(BY_NAME_ONLY)
    assert [step.name for step in select(["kvm-host"])] == ["build-qemu", "kvm-lab-up", "kvm-host", "kvm-lab-down"]


def test_steps_refer_to_steps_that_exist_and_come_before() -> None:
    seen: set[str] = set()
    for step in STEPS:
        assert {*step.needs, *step.after} <= seen, step.name
        seen.add(step.name)


def test_the_summary_ends_with_the_counts() -> None:
    step = python("it", "")
    lines = summary(
        [Outcome(step, "ok", 1.0, 3, 0, 1), Outcome(step, "failed", 1.0, 1, 2, 0, ("failed: a",))]
    ).splitlines()
    assert lines[-1] == "4 passed, 2 failed, 1 skipped"
    assert any("failed: a" in line for line in lines)
