# SPDX-License-Identifier: GPL-3.0-or-later
"""The kit for real machines: what it lists, and how it judges what they wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hardware import RUN_CASE, boot_line, judge_logs

from kmodlab.cases import CASES


def test_each_line_names_the_case_and_its_initial_root() -> None:
    lines = {case.name: boot_line(case, "two").split() for case in CASES}

    for name, words in lines.items():
        assert words[:2] == [name, "two"]
        assert {f"kmod.case={name}", "kmod.config=two"} <= set(words)
    assert lines["modules"][2:4] == ["debian-vmlinuz", "debian-python-initrd.gz"]
    assert lines["guests"][2:4] == ["debian-vmlinuz", "debian-initrd.gz"]
    assert lines["debug"][2:4] == ["debug-vmlinuz", "debug-initrd.gz"]
    assert "mitigations=off" not in lines["guests"]


def test_logs_are_judged_as_those_of_emulated_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "abi-one.log").write_text("[    1.0] something\nKMOD: pass\n")
    assert judge_logs("amd", tmp_path) == 0
    assert "pass" in capsys.readouterr().out

    (tmp_path / "names-two.log").write_text("KMOD: fail the node is not there\n")
    assert judge_logs("amd", tmp_path) == 1
    assert "amd names, two cores: fail the node is not there" in capsys.readouterr().out


def test_no_logs_are_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge_logs("intel", tmp_path) == 1
    assert "has no logs" in capsys.readouterr().out


def test_an_unknown_case_boots_nothing(tmp_path: Path) -> None:
    """``guests`` and a dot is no case, though it would match one as a pattern."""
    (tmp_path / "cases").write_text(f"{boot_line(CASES[0], 'two')}\n")
    script = tmp_path / "run-case"
    script.write_text(RUN_CASE.read_text().replace("kexec ", "echo kexec "))

    for arguments in (["names", "two"], ["guest.", "two"], [CASES[0].name]):
        done = subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.splitlines()[1:] == [f"{CASES[0].name} two"]

    done = subprocess.run(["sh", str(script), CASES[0].name, "two"], capture_output=True, text=True, check=True)
    assert f"kmod.case={CASES[0].name} kmod.config=two" in done.stdout
