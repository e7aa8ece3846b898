# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a report in a real browser: no error and no request, in both schemes, on a small screen, in print."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_browser import Browser
from rollout_story import journal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report

ROOT = Path(__file__).resolve().parents[3]
_WIDTH = "document.documentElement.scrollWidth"
_OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('svg.chart text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
      found.push(boxes[i][0] + ' / ' + boxes[j][0]);
  }
  return found;
})()"""
_CUT_OFF = """[...document.querySelectorAll('svg.chart text')].filter(t => {
  const [box, whole] = [t.getBoundingClientRect(), t.ownerSVGElement.getBoundingClientRect()];
  return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
}).map(t => t.textContent)"""


@pytest.fixture(scope="module", name="browser")
def _browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module", name="page")
def _page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(build_report(journal(), aborted=False)), encoding="utf-8")
    return path


def complaints(browser: Browser) -> list[Any]:
    """Return errors, warnings and requests other than for the page itself that the browser told of since it was loaded."""
    found: list[Any] = []
    for event in browser.events:
        told = event.get("params", {})
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            found.append(told)
        elif event.get("method") == "Network.requestWillBeSent":
            url = told["request"]["url"]
            found += [url] if not url.startswith("data:") and told.get("type") != "Document" else []
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_without_a_complaint_and_is_drawn(browser: Browser, page: Path, scheme: str) -> None:
    browser.show(page, scheme=scheme)

    picture = browser.picture(900)
    assert complaints(browser) == []
    assert struct.unpack(">II", picture[16:24]) == (1180, 900)
    assert (
        browser.value("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(243, 245, 248)",
            "dark": "rgb(14, 19, 25)",
        }[scheme]
    )
    assert browser.value("document.querySelectorAll('svg.chart').length") == 2
    assert browser.value("document.querySelector('h1').innerText").startswith("qemu-11.1.1-")
    assert browser.value(_OVERLAPS) == []
    assert browser.value(_CUT_OFF) == []


@pytest.mark.parametrize("width", [360, 800, 1180, 2560])
def test_no_screen_is_too_small_for_it(browser: Browser, page: Path, width: int) -> None:
    """What is wide scrolls by itself, not the page."""
    browser.show(page, width=width)

    assert browser.value(_WIDTH) <= width


def test_those_who_do_not_see_it_are_told_everything(browser: Browser, page: Path) -> None:
    browser.show(page)

    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]

    named: dict[str, list[str]] = {role: [] for role in ("image", "table", "heading", "region")}
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in named and not node.get("ignored"):
            named[role].append(node.get("name", {}).get("value", ""))
    assert len(named["image"]) == 22  # two charts, and the checks with a limit of the four waves that were judged
    assert all(named["image"])
    assert "Timeline of the waves" in named["image"]
    assert {"Waves over time", "Decisions of the gate", "Failures and roll-backs"} <= set(named["heading"])
    assert all(named["region"])


def test_it_prints_whole(browser: Browser, page: Path) -> None:
    browser.show(page, scheme="dark")

    paper = browser.print()

    assert paper.startswith(b"%PDF")
    assert 5 <= paper.count(b"/Type /Page\n") + paper.count(b"/Type/Page/") <= 14


def test_complaints_are_seen(browser: Browser, tmp_path: Path) -> None:
    """A page with a script, a missing picture and overlapping labels is what the checks above would find."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><script>throw new Error('no')</script><img src='missing.png'>"
        "<svg class='chart' width='100' height='20'><text y='15'>one</text><text y='15' x='3'>two two two two two</text></svg>"
    )

    browser.show(bad)

    assert len(complaints(browser)) >= 2
    assert browser.value(_OVERLAPS) == ["one / two two two two two"]
    assert browser.value(_CUT_OFF) == ["two two two two two"]


def test_the_picture_in_the_documentation_is_one(browser: Browser) -> None:
    picture = (ROOT / "docs" / "report.png").read_bytes()

    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24])[0] == 1180
    assert len(picture) < 300_000
