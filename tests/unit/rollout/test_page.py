# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a report: what it tells, that it needs nothing else, that it can be read by everybody."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rollout_story import NEW, NEW_KVM, VMS, journal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page import (
    checks,
    distribution,
    facts,
    problems,
    timeline,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import duration, milliseconds, percent

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs" / "upgrade.schema.json").read_text(encoding="utf-8"))
VOID = {"meta", "link", "br"}
INLINE = {"b", "span", "code", "small"}


class Outline(HTMLParser):
    """Checks that elements nest, and gathers what tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in INLINE:
            self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    report = build_report(journal(), aborted=False)
    lenient = copy.deepcopy(SCHEMA)
    lenient["$defs"]["gate"]["properties"].setdefault("checks", {"type": "array"})
    jsonschema.Draft202012Validator(lenient).validate(report)
    return report


class TestPage:
    """The whole of it."""

    def test_tells_what_happened(self, story: dict[str, Any]) -> None:
        text = " ".join(Outline(render_page(story)).text.split())

        assert f"{NEW} and {NEW_KVM}" in text
        assert "Wave 3 did not pass the gate and was rolled back. 8 hosts of later waves stayed untouched." in text
        assert "Waves passed 3 of 5" in text
        assert "125 of 200" in text
        assert re.search(
            r"Wave 3 was rolled back: 73 VMs on 12 hosts in \d+ s, longest pause on the way \d+\.?\d* ms\.", text
        )
        assert "18 hosts" in text and "in use by legacy-erp" in text
        assert "failure rate all ✓ PASS 13 VMs 0 % 20.6 % 25 %" in text
        for vm in story["vms"]:
            assert vm["name"] in text

    def test_needs_nothing_else_and_runs_nothing(self, story: dict[str, Any]) -> None:
        outline = Outline(render_page(story))

        assert outline.all("script") == []
        assert not re.search(r"https?://|@import|url\((?!#)", render_page(story))
        for tag, attributes in outline.elements:
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("href", "src"):
                assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
        policy = next(meta for meta in outline.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
        assert "default-src 'none'" in str(policy["content"])

    def test_every_drawing_has_words_and_every_table_headings(self, story: dict[str, Any]) -> None:
        outline = Outline(render_page(story))
        ids = [str(attributes["id"]) for _tag, attributes in outline.elements if "id" in attributes]

        assert len(ids) == len(set(ids))
        drawings = outline.all("svg")
        assert len(drawings) > 10
        for attributes in drawings:
            assert attributes.get("role") == "img"
            named = (attributes.get("aria-labelledby") or "").split()
            assert attributes.get("aria-label") or (named and set(named) <= set(ids))
        for attributes in outline.all("th"):
            assert attributes.get("scope") in ("row", "col")
        assert outline.all("html")[0]["lang"] == "en"
        headings = [int(tag[1]) for tag, _attributes in outline.elements if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == 1
        assert all(later - before <= 1 for before, later in zip(headings, headings[1:]))

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read_on_its_ground(self, story: dict[str, Any], scheme: str) -> None:
        """WCAG AA: 4.5 to 1."""
        colours = palette(render_page(story), scheme)
        pairs = [(text, ground) for text in ("ink", "muted") for ground in ("bg", "card")]
        pairs += [(tone, ground) for tone in ("ok", "bad", "warn", "undo") for ground in ("card", f"{tone}-soft")]
        pairs += [
            ("muted", "plain-soft"),
            ("ink", "bad-soft"),
            ("ink", "ok-soft"),
            ("ink", "warn-soft"),
            ("ink", "undo-soft"),
        ]

        assert {pair: round(c, 2) for pair in pairs if (c := contrast(colours[pair[0]], colours[pair[1]])) < 4.5} == {}
        assert contrast(colours["accent"], colours["card"]) >= 3

    def test_values_are_escaped(self, story: dict[str, Any]) -> None:
        report = copy.deepcopy(story)
        evil = "<script>alert(1)</script>\"'&"
        report["vms"][0].update(name=evil, error=evil, vm_class=evil, outcome="lost")
        report["waves"][3]["gate"]["reasons"][0] = evil
        report["waves"][0]["gate"]["checks"][0]["text"] = evil
        report["hosts"][0]["kvm"]["kept"] = [{"core": evil, "reason": evil}]

        page = render_page(report)

        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= 6

    def test_a_report_without_times_checks_and_cores_is_shown(self, story: dict[str, Any]) -> None:
        """As versions before wrote it."""
        report = copy.deepcopy(story)
        del report["kvm_build"]
        for wave in report["waves"]:
            for key in ("started", "judged", "finished"):
                del wave[key]
            if wave["gate"]:
                del wave["gate"]["checks"]
        for host in report["hosts"]:
            for key in ("started", "finished", "rollback_finished", "kvm"):
                del host[key]
        for vm in report["vms"]:
            for key in ("finished", "kvm", "old_build_known"):
                del vm[key]

        text = " ".join(Outline(render_page(report)).text.split())

        assert "Waves over time" not in text
        assert "the failure rate is below 20.6%" in text
        assert "KVM cores" not in text

    def test_a_rollout_that_did_nothing_is_shown(self, story: dict[str, Any]) -> None:
        report = build_report(journal()[:1], aborted=True)

        text = Outline(render_page(report)).text

        assert "Aborted" in text
        assert "run it again to go on where it stopped" in text
        assert "40 hosts of which no VM is known" in text

    @pytest.mark.parametrize(
        ("then", "told"),
        [
            ("go_on", "? INCONCLUSIVE the rollout went on"),
            ("grow", "judged again with the next wave"),
            ("pause", "paused for a person"),
        ],
    )
    def test_what_the_rollout_did_then_is_told(self, story: dict[str, Any], then: str, told: str) -> None:
        report = copy.deepcopy(story)
        report["waves"][0]["gate"].update(verdict="INCONCLUSIVE", reasons=["too few"], then=then)

        text = " ".join(Outline(render_page(report)).text.split())

        assert told in text
        assert ("Wave 0 did not pass" in text) == (then == "pause")
        assert ("Wave 3 did not pass" in text) == (then != "pause")

    def test_a_plan_says_that_it_is_one(self, story: dict[str, Any]) -> None:
        report = {**copy.deepcopy(story), "mode": "plan", "verdict": "ok", "exit_reason": "plan only"}

        assert "(plan, nothing was changed)" in Outline(render_page(report)).text


class TestFacts:
    """What is counted and listed."""

    def test_everything_that_went_wrong_is_listed_once_with_how_it_stands(self, story: dict[str, Any]) -> None:
        assert sorted((problem.what, problem.now) for problem in problems.problems(story)) == [
            ("less healthy than before", "rolled back with its wave"),
            *[("pause too long", "rolled back with its wave")] * 2,
            *[("rolled back", "taken back by the old process; runs on what it ran before")] * 2,
        ]

    def test_a_lost_guest_and_a_failed_way_back_call_for_a_person(self, story: dict[str, Any]) -> None:
        report = copy.deepcopy(story)
        bad = [vm for vm in report["vms"] if vm["wave"] == 3 and vm["rollback"]]
        bad[0].update(outcome="lost", error="it is gone", rollback=None)
        bad[1]["rollback"].update(outcome="failed", error="no way")
        report["hosts"][20].update(outcome="unreachable", reason="no route")
        report["hosts"][21].update(rollback="unreachable")

        told = {(problem.what, problem.now) for problem in problems.problems(report)}

        assert ("lost", "the guest is gone; start it anew") in told
        assert ("roll-back failed", "a person must look at it") in told
        assert any(what == "unreachable" for what, _now in told)
        assert any(what == "roll-back unreachable" for what, _now in told)
        assert {part.label: part.count for part in facts.standing(report)}["a person must look"] == 2

    def test_the_parts_make_the_whole(self, story: dict[str, Any]) -> None:
        assert sum(part.count for part in facts.standing(story)) == VMS
        assert sum(part.share for part in facts.standing(story)) == pytest.approx(1)


class TestDrawings:
    """Geometry."""

    def test_the_timeline_keeps_order_and_bounds(self, story: dict[str, Any]) -> None:
        drawing = timeline.draw(story)

        assert drawing is not None
        bars = [bar for row in drawing.rows for bar in row.bars]
        assert all(bar.x >= timeline.LEFT and bar.x + bar.width <= timeline.RIGHT + 2.1 for bar in bars)
        assert sum(len(row.marks) for row in drawing.rows) == VMS
        assert sum(1 for row in drawing.rows for mark in row.marks if not mark.good) == 2
        assert [bar.tone for bar in drawing.rows[3].bars].count("undo") == 12
        assert (drawing.rows[4].touched, drawing.rows[4].bars) == (False, [])
        assert all(a.y + a.height < b.y for a, b in zip(drawing.rows, drawing.rows[1:]))

    def test_a_wave_of_many_hosts_is_drawn_as_a_whole(self, story: dict[str, Any]) -> None:
        report = copy.deepcopy(story)
        wave, host, vm = report["waves"][2], report["hosts"][10], report["vms"][60]
        wave["hosts"] = [f"h{number}" for number in range(1000)]
        report["hosts"] = [{**host, "name": name, "wave": 2} for name in wave["hosts"]]
        report["vms"] = [{**vm, "host": name, "wave": 2} for name in wave["hosts"]]

        drawing = timeline.draw(report)

        assert drawing is not None
        assert len(drawing.rows[2].bars) < 300
        assert drawing.height < 600
        assert len(render_page(report)) < 2_000_000

    def test_the_distribution_counts_every_pause_and_tells_those_over_the_budget(self, story: dict[str, Any]) -> None:
        drawing = distribution.draw(story)

        assert drawing is not None
        assert [row.name for row in drawing.rows] == ["batch", "realtime", "standard"]
        assert sum(row.measured for row in drawing.rows) == VMS
        assert [row.over for row in drawing.rows] == [0, 2, 2]
        for row in drawing.rows:
            assert row.budget_x is not None
            assert distribution.LEFT < row.median_x < row.longest_x < distribution.RIGHT
            over = [column for column in row.columns if column.over]
            assert bool(over) == bool(row.over)
            assert all(column.y >= row.y for column in row.columns)
        assert "at least 94.1 % of such VMs" in drawing.rows[0].proof

    def test_one_pause_of_nothing_is_drawn(self, story: dict[str, Any]) -> None:
        report = {**copy.deepcopy(story), "downtime_budget_ms": None}
        report["vms"] = [{**report["vms"][0], "downtime_ms": 0.0, "vm_class": None}]

        drawing = distribution.draw(report)

        assert drawing is not None
        assert [(row.name, row.budget_x, len(row.columns)) for row in drawing.rows] == [("all VMs", None, 1)]

    def test_nothing_measured_is_not_drawn(self, story: dict[str, Any]) -> None:
        assert distribution.draw({**story, "vms": []}) is None

    @pytest.mark.parametrize(
        ("observed", "bound", "limit", "drawn"),
        [
            (0.0, 0.2, 0.25, True),
            (0.0, 0.2, None, False),
            (None, None, 0.25, False),
            (0.0, None, 0.0, True),
            (-0.1, 0.02, 0.05, True),
        ],
        ids="ordinary no-limit nothing-seen all-zero better-than-before".split(),
    )
    def test_a_check_is_drawn_where_there_is_something_to_compare(
        self, observed: float | None, bound: float | None, limit: float | None, drawn: bool
    ) -> None:
        check = {"check": "comparison", "subject": "all", "verdict": "PASS", "n": 5, "unit": "vm", "observed": observed}
        check.update(bound=bound, limit=limit, confidence=0.95, n_needed=59, text="told")

        (row,) = checks.rows({"checks": [check]})

        assert (row.sample, row.needed, row.confidence) == ("5 VMs", "59 VMs", "95 %")
        assert (row.drawing is not None) == drawn
        if row.drawing:
            places = (row.drawing.observed_x, row.drawing.bound_x, row.drawing.limit_x)
            assert all(0 <= place <= checks.WIDTH for place in places if place is not None)


class TestWords:
    """Quantities."""

    @pytest.mark.parametrize(
        ("value", "told"),
        [(None, "–"), (0.0, "0 ms"), (5.25, "5.2 ms"), (200.4, "200.4 ms"), (200.0, "200 ms"), (1500.0, "1.5 s")],
    )
    def test_milliseconds(self, value: float | None, told: str) -> None:
        assert milliseconds(value) == told

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [
            (0.2, "0 s"),
            (59.6, "1 min"),
            (192, "3 min 12 s"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
            (86399.6, "1 d"),
            (3600 * 51, "2 d 03 h"),
            (-5, "0 s"),
        ],
    )
    def test_duration(self, seconds: float, told: str) -> None:
        assert duration(seconds) == told

    def test_percent(self) -> None:
        assert [percent(value) for value in (0, 0.0034, 0.206, 1)] == ["0 %", "0.34 %", "20.6 %", "100 %"]


def palette(page: str, scheme: str) -> dict[str, str]:
    """Return the colours of the page's style, those of the dark scheme over those of the light one where asked."""
    blocks = re.findall(r":root\{([^}]*)\}", page)
    wanted = blocks[:1] if scheme == "light" else blocks[:2]
    return {name: value for block in wanted for name, value in re.findall(r"--([a-z-]+):(#[0-9a-f]+)", block)}


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours as WCAG defines it."""
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
