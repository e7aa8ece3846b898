# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement over each run, and the table of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .cases import CASES, CONFIGS, Case
from .machine import Run


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    test: str
    vendor: str
    config: str
    verdict: str
    why: str
    seconds: float
    figures: list[str] = field(default_factory=list)


def judge(case: Case, vendor: str, config: str, run: Run) -> Row:
    """A control passes when its guest saw the fault it is made for; that its script went wrong is not enough."""
    word, why = run.last_word()
    if not run.ended:
        good, why = False, f"the machine did not end in time, after {run.seconds:.0f} s its last word is: {word} {why}"
    elif case.reset:
        good, why = _judge_reset(case.reset, word, why, run.output)
    elif config == "control":
        good = word == "fail" and re.search(case.fault, run.output) is not None
        why = f"goes wrong as it has to: {why}" if good else f"does not go wrong as it has to: {word} {why}"
    else:
        good = word == "pass"
        why = why if good else f"{word} {why}"
    verdict = "pass" if good else "fail"
    return Row(case.name, vendor, CONFIGS[config], verdict, why.strip(), round(run.seconds, 1), run.figures())


def _judge_reset(pattern: str, word: str, why: str, output: str) -> tuple[bool, str]:
    if word != "ready":
        return False, f"{word} {why}"
    after = output.rpartition("KMOD: ready")[2]
    unwanted = pattern.startswith("!")
    if (re.search(pattern.removeprefix("!"), after) is None) != unwanted:
        return False, f"after that it wrote: {after.strip()[-300:]!r}"
    return True, ""


def render(rows: list[Row]) -> str:
    """The table for people: a line for each test, a column for each configuration."""
    titles = {case.name: case.title for case in CASES}
    width = max(len(title) for title in titles.values())
    lines = []
    for vendor in dict.fromkeys(row.vendor for row in rows):
        lines.append(f"{vendor:{width}}  " + "  ".join(f"{config:9}" for config in CONFIGS.values()))
        for name in dict.fromkeys(row.test for row in rows if row.vendor == vendor):
            verdicts = {row.config: row.verdict for row in rows if (row.test, row.vendor) == (name, vendor)}
            cells = "  ".join(f"{verdicts.get(config, '-'):9}" for config in CONFIGS.values())
            lines.append(f"{titles[name]:{width}}  {cells}".rstrip())
        lines.append("")
    told = [row for row in rows if row.verdict == "fail" or row.config == "control"]
    lines += [f"{row.vendor} {row.test}, {row.config}: {row.why}" for row in told]
    lines += [f"{row.vendor} {row.test}, {row.config}: {figure}" for row in rows for figure in row.figures]
    return "\n".join(lines)
