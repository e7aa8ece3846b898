# SPDX-License-Identifier: GPL-3.0-or-later
"""The narrator shows what goes on, and a failure is a failure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import narrator
import pytest
from builds import Build
from demo import Demo, DemoFailedError, _spread
from narrator import CommandFailedError, Narrator, last_line

OLD = Build("10.2", "qemu-10.2.2-0000000000000000", Path("old"))
NEW = Build("11.1", "qemu-11.1.1-1111111111111111", Path("new"))


@pytest.fixture
def tell(tmp_path: Path) -> Narrator:
    return Narrator(dict(os.environ), tmp_path)


def test_output_is_shown_and_returned(tell: Narrator, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr)"
    assert tell.run(sys.executable, "-c", code, doing="it") == "one\ntwo\n"
    assert [line.split("]")[1].strip() for line in capsys.readouterr().out.splitlines()] == ["one", "two"]


def test_a_result_goes_to_its_file(tell: Narrator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('{}'); print('two', file=sys.stderr)"
    tell.run(sys.executable, "-c", code, doing="it", result_to=tmp_path / "result")
    assert (tmp_path / "result").read_text() == "{}\n"
    assert "two" in capsys.readouterr().out


def test_a_failure_names_what_was_done(tell: Narrator) -> None:
    with pytest.raises(CommandFailedError, match="painting it: failed with status 3"):
        tell.run(sys.executable, "-c", "raise SystemExit(3)", doing="painting it")


def test_silence_is_broken(
    tell: Narrator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(narrator, "QUIET_S", 0.1)
    # The command goes on only when the hint was asked for.
    asked = tmp_path / "asked"
    os.mkfifo(asked)

    hints: list[str] = []

    def hint() -> str:
        if not hints:
            asked.write_text("go\n")
        hints.append("half way")
        return hints[-1]

    tell.run(sys.executable, "-c", "open('asked').read()", doing="painting it", hint=hint)
    assert "painting it" in (shown := capsys.readouterr().out) and "half way" in shown


def test_last_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\n[7/9] b c\n")
    assert last_line(tmp_path / "log") == "[7/9] b c"
    assert last_line(tmp_path / "none") == ""


def move(**more: object) -> dict[str, object]:
    return {
        "name": "vm1",
        "outcome": "upgraded",
        "mechanism": "vfork",
        "old_build_id": OLD.build_id,
        "new_build_id": NEW.build_id,
        "downtime_ms": 5.0,
        **more,
    }


@pytest.mark.parametrize(
    ("vms", "count", "problem"),
    [
        pytest.param([move()], 1, None, id="right"),
        pytest.param([move()], 2, "1 of 2", id="too-few"),
        pytest.param([move(), move(outcome="refused")], 1, "1 of 1", id="one-too-many"),
        pytest.param([move(outcome="already")], 1, "0 of 1", id="not-moved"),
        pytest.param([move(new_build_id=OLD.build_id)], 1, "0 of 1", id="wrong-build"),
        pytest.param([move(mechanism="cpr-transfer")], 1, "0 of 1", id="other-mechanism"),
        pytest.param([move(downtime_ms=None)], 1, "no downtime was measured of vm1", id="unmeasured"),
    ],
)
def test_the_demonstration_wants_every_vm_moved_and_measured(
    vms: list[dict[str, object]], count: int, problem: str | None
) -> None:
    if problem is None:
        Demo._require(vms, OLD, NEW, count)
    else:
        with pytest.raises(DemoFailedError, match=problem):
            Demo._require(vms, OLD, NEW, count)


def test_spread() -> None:
    assert _spread([1.0, 3.0, None, 2.5]) == "n=3, median 2.5 ms, max 3.0 ms"
    assert _spread([None]) == "n=0, not measured"
