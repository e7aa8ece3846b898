#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws docs/report.png anew: the page of the rollout in rollout_story.py, as a browser shows it.

report_screenshot.py [--scheme dark] [--until ID] [--width PIXELS] [--out FILE]
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
    parser.add_argument("--until", default="pauses-title", help="id of the heading of the last section to show")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "report.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(render_page(build_report(journal(), aborted=False)), encoding="utf-8")
        with shown(page, scheme=arguments.scheme, width=arguments.width) as browser:
            section = f"document.getElementById('{arguments.until}').closest('section')"
            height = round(browser.value(f"{section}.getBoundingClientRect().bottom")) + 16
            arguments.out.write_bytes(browser.picture(height))


if __name__ == "__main__":
    main()
