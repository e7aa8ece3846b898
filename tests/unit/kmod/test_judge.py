# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement over a run of the emulated host."""

from __future__ import annotations

import pytest

from kmodlab.cases import CASES
from kmodlab.machine import GUEST, Run
from kmodlab.table import judge

NAMES = {case.name: case for case in CASES}
WRONG = "the guest's TSC_AUX is a001, not b001\nKMOD: fail vmload ended with 1\n"


@pytest.mark.parametrize(
    ("case", "config", "output", "ended", "verdict"),
    [
        ("guests", "two", "KMOD: pass\n", True, "pass"),
        ("guests", "two", "KMOD: pass\r\n", True, "pass"),
        ("guests", "two", WRONG, True, "fail"),
        ("guests", "two", "KMOD: error insmod core_b\n", True, "fail"),
        ("guests", "two", "KMOD: pass\n", False, "fail"),
        ("guests", "two", "", True, "fail"),
        ("guests", "control", WRONG, True, "pass"),
        ("guests", "control", "KMOD: pass\n", True, "fail"),
        # The control must go wrong in the way it is made for.
        ("guests", "control", "KMOD: error insmod core_split\n", True, "fail"),
        ("guests", "control", "KMOD: fail vmload ended with 2\n", True, "fail"),
        (
            "fixed-bug",
            "control",
            "KMOD: fail a VM moved from a to b and back saw: executed executed executed\n",
            True,
            "pass",
        ),
        ("fixed-bug", "control", "KMOD: fail a VM moved from a to b and back saw: \n", True, "fail"),
        ("reboot", "one", "KMOD: ready\nreboot: Restarting system\n", True, "pass"),
        ("reboot", "one", "KMOD: ready\nKernel panic - not syncing\n", True, "fail"),
        ("reboot", "one", "KMOD: ready\nKMOD: fail no reboot\n", True, "fail"),
        ("reboot", "one", "KMOD: ready\n", False, "fail"),
        ("panic", "one", "KMOD: ready\nKernel panic - not syncing\n", True, "pass"),
        ("panic", "one", "KMOD: ready\n", True, "fail"),
    ],
)
def test_verdict(case: str, config: str, output: str, ended: bool, verdict: str) -> None:
    assert judge(NAMES[case], "amd", config, Run(output, ended, 1.0)).verdict == verdict


def test_each_case_has_its_script() -> None:
    scripts = {path.stem for path in (GUEST / "cases").iterdir()}
    assert scripts == {case.name for case in CASES}
