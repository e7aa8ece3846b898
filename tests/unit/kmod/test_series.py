# SPDX-License-Identifier: GPL-3.0-or-later
"""Two generations of kernels in the KVM tests: which packages are theirs, and their rows in one file of results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import run
from checkout import ROOT

from kmodlab.table import Row
from vmmlab.generation import GENERATIONS


@pytest.mark.parametrize(
    ("series", "release"), [("6.12", "6.12.118+deb13"), ("6.12", "6.12.118+deb13.1"), ("6.1", "6.1.0-56")]
)
def test_a_release_is_of_one_generation(series: str, release: str) -> None:
    found = [name for name, generation in GENERATIONS.items() if re.fullmatch(generation.release, release)]
    assert found == [series]


@pytest.mark.parametrize("release", ["6.1.0-56-cloud", "6.1.0-56-rt", "6.12.118+deb14", "6.12.118"])
def test_other_kernels_are_of_none(release: str) -> None:
    assert not any(re.fullmatch(generation.release, release) for generation in GENERATIONS.values())


@pytest.mark.parametrize("series", GENERATIONS)
def test_each_has_patches_and_fixes(series: str) -> None:
    for kind in ("patches", "fixes"):
        folder = ROOT / "kmod" / kind / series
        listed = [line for line in (folder / "series").read_text().splitlines() if not line.startswith("#")]
        assert listed == sorted(path.name for path in folder.glob("*.patch"))
        assert listed


def test_rows_replace_those_of_their_series_and_vendor_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results" / "kmod.json")

    def write(series: str, vendor: str, verdict: str) -> None:
        run.write_results(series, [Row("abi", vendor, "one core", verdict, "", 1.0)])

    write("6.12", "amd", "pass")
    write("6.1", "amd", "fail")
    write("6.1", "intel", "pass")
    write("6.1", "amd", "pass")

    rows = json.loads(run.RESULTS.read_text())["rows"]
    told = sorted((row["series"], row["vendor"], row["test"], row["config"], row["verdict"]) for row in rows)
    assert told == [
        ("6.1", "amd", "abi", "one core", "pass"),
        ("6.1", "intel", "abi", "one core", "pass"),
        ("6.12", "amd", "abi", "one core", "pass"),
    ]


def test_rows_without_a_series_are_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were written before there were two."""
    monkeypatch.setattr(run, "RESULTS", tmp_path / "kmod.json")
    run.RESULTS.write_text(json.dumps({"rows": [{"vendor": "amd", "test": "old"}]}))
    run.write_results("6.12", [Row("abi", "amd", "one core", "pass", "", 1.0)])
    assert [row["test"] for row in json.loads(run.RESULTS.read_text())["rows"]] == ["abi"]
