# SPDX-License-Identifier: GPL-3.0-or-later
"""What is run in which configuration, and the judgement."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .machine import Run

# As the guest knows a configuration → as people read it.
CONFIGS = {"stock": "stock", "one": "one core", "two": "two cores", "control": "control"}


@dataclass(frozen=True)
class Case:
    """A script in ``guest/cases``.

    ``reset``: how the machine is to end after the word ``ready``, in a pattern that has to be (or, with ``!`` before it, must
    not be) in what it writes.
    """

    name: str
    title: str
    configs: tuple[str, ...]
    limit_s: float = 90
    arguments: str = ""
    reset: str = ""


CASES = (
    Case("guests", "two VMs per CPU, MSR values of their own", ("stock", "one", "two", "control")),
    Case("checked", "the same, MSR cache compared with hardware", ("two",)),
    Case("hotplug", "CPU offline and online under load", ("stock", "one", "two")),
    Case("first-online", "CPU online for the first time", ("stock", "one", "two", "control"), arguments="maxcpus=1"),
    Case("reload", "100 times unloaded and loaded", ("stock", "one", "two"), limit_s=600),
    Case("in-use", "core in use is not unloaded", ("stock", "one", "two")),
    Case("abi", "core for another thin ABI is refused", ("one",)),
    Case("refusals", "SEV, stock KVM beside thin refused", ("one",)),
    Case("names", "nodes, default core, names", ("two",)),
    Case("nothing-left", "all off and gone after unload", ("one", "two")),
    Case("reboot", "reboot with VMs on both CPUs", ("stock", "one", "two"), reset=r"!Kernel panic|WARNING:|BUG:"),
    Case("panic", "panic with VMs on both CPUs", ("stock", "one", "two"), reset=r"Kernel panic"),
)


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    test: str
    vendor: str
    config: str
    verdict: str
    why: str
    seconds: float


def judge(case: Case, config: str, run: Run) -> Row:
    """A control passes when its guest saw the fault it is made for; that its script went wrong is not enough."""
    word, why = run.last_word()
    if not run.ended:
        good, why = False, f"the machine did not end within {case.limit_s:.0f} s, last word: {word} {why}"
    elif case.reset:
        good, why = _judge_reset(case.reset, word, why, run.output)
    elif config == "control":
        good = word == "fail" and re.search(r"TSC_AUX .*is [0-9a-f]+", run.output) is not None
        why = f"goes wrong as it has to: {why}" if good else f"does not go wrong as it has to: {word} {why}"
    else:
        good = word == "pass"
        why = why if good else f"{word} {why}"
    return Row(case.name, "amd", CONFIGS[config], "pass" if good else "fail", why.strip(), round(run.seconds, 1))


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
    lines = [f"{'amd':{width}}  " + "  ".join(f"{config:9}" for config in CONFIGS.values())]
    for name in dict.fromkeys(row.test for row in rows):
        verdicts = {row.config: row.verdict for row in rows if row.test == name}
        cells = "  ".join(f"{verdicts.get(config, '-'):9}" for config in CONFIGS.values())
        lines.append(f"{titles[name]:{width}}  {cells}".rstrip())
    lines += [
        f"{row.test}, {row.config}: {row.why}" for row in rows if row.verdict == "fail" or row.config == "control"
    ]
    return "\n".join(lines)
