#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws docs/report.png anew: the page of the rollout in rollout_story.py, as a browser shows it.

report_screenshot.py [--scheme dark] [--height PIXELS] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from checkout import ROOT
from headless_browser import shown
from rollout_story import journal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the screenshot of a report.")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--height", type=int, default=2000, help="cut it there; 0 for the whole page")
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "report.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(render_page(build_report(journal(), aborted=False)), encoding="utf-8")
        with shown(page, scheme=arguments.scheme, width=arguments.width) as browser:
            arguments.out.write_bytes(browser.picture(arguments.height or None, arguments.top))


if __name__ == "__main__":
    main()
