# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests of the lab itself: the lab ``tests``, which must be up, and ``lab.py`` as people run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmmlab.expect import expect_lab
from vmmlab.fleet import Fleet
from vmmlab.progress import LabError

LAB = Path(__file__).resolve().parents[1] / "lab.py"
LIMIT_S = 600

LabCommand = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The lab that must be up."""
    try:
        return expect_lab("tests", hosts=3, vms=2)
    except LabError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def lab(fleet: Fleet) -> LabCommand:
    """``lab("status")`` runs ``lab.py status`` on the lab that is up."""
    return lambda *arguments: run_lab(fleet.state, *arguments)


def run_lab(state: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``lab.py`` on the lab whose files are in ``state``."""
    return subprocess.run(lab_argv(state, *arguments), capture_output=True, text=True, check=False, timeout=LIMIT_S)


def lab_argv(state: Path, *arguments: str | Path) -> list[str]:
    """The command line of that."""
    return [sys.executable, str(LAB), "--state", str(state), *map(str, arguments)]
