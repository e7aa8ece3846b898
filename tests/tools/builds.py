#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the QEMU artifacts of the lab built by the product's own build playbook: ``builds.py [--stock] [SERIES ...]``.

What is built already is found again by its inputs, in seconds. ``--stock``: without our patches, to be compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from checkout import BUILD, CACHE, NEW_SERIES, OLD_SERIES, ROOT, STOCK_ARTIFACTS, environment
from narrator import CommandFailedError, Narrator, last_line

PLAYBOOKS = ROOT / "tests" / "tools"


@dataclass(frozen=True)
class Build:
    """An artifact and its build id."""

    series: str
    build_id: str
    artifact: Path


def build(series: str, narrator: Narrator, stock: bool = False) -> Build:
    """Return the artifact of ``series``, building it when its inputs are new. Raises ``CommandFailedError``.

    Side effect: the artifact becomes the newest of its series, which is what the lab takes when none is named.
    """
    kind = "stock-" if stock else ""
    told = BUILD / "builds" / f"{kind}{series}.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)
    progress = CACHE / "build" / "logs" / f"progress-{series}.log"
    narrator.run(
        *("ansible-playbook", PLAYBOOKS / ("build_stock.yml" if stock else "build_and_tell.yml")),
        *("-e", json.dumps({"build_series": [series], "told": str(told), "stock_dest": str(STOCK_ARTIFACTS)})),
        doing=f"building {'stock ' if stock else ''}QEMU {series}",
        hint=lambda: last_line(progress),
    )
    result = json.loads(told.read_text())
    artifact = Path(result["artifact"])
    os.utime(artifact)
    return Build(series, result["build_id"], artifact)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the QEMUs that tests and the lab need.")
    parser.add_argument("series", nargs="*", default=[OLD_SERIES, NEW_SERIES])
    parser.add_argument("--stock", action="store_true", help="build them without our patches")
    options = parser.parse_args()
    narrator = Narrator(
        environment(ANSIBLE_LOCALHOST_WARNING="false", ANSIBLE_INVENTORY_UNPARSED_WARNING="false"), ROOT
    )
    try:
        for series in options.series:
            made = build(series, narrator, options.stock)
            narrator.say(f"{made.build_id}: {made.artifact} ({made.artifact.stat().st_size >> 20} MiB)")
    except CommandFailedError as error:
        narrator.say(str(error))
        return 1
    except KeyboardInterrupt:
        narrator.say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
