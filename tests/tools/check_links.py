#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that every relative link of a page leads to a file under version control, and to a heading it has."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from checkout import ROOT
from tracked import tracked_files

LINK = re.compile(r"\[[^\]]*\]\(\s*([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#+ +(.+?)[ #]*$", re.MULTILINE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def problems_of(page: Path, known: set[Path]) -> list[str]:
    """Return the links of ``page`` that lead nowhere. ``known``: files and folders; all relative to the checkout."""
    text = INLINE_CODE.sub("", _without_fenced(page))
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    return [
        f"{page}: {target}: {problem}"
        for target in targets
        if not SCHEME.match(target) and (problem := _problem_of(target, page, known))
    ]


def _problem_of(target: str, page: Path, known: set[Path]) -> str | None:
    name, _hash, anchor = target.partition("#")
    path = Path(os.path.normpath(page.parent / name)) if name else page
    if path not in known:
        return "no such file is under version control"
    if anchor and path.suffix == ".md" and anchor not in _anchors(path):
        return f"{path} has no such heading"
    return None


def _anchors(page: Path) -> set[str]:
    """What the headings of ``page`` are called in links, as GitHub makes it of their text."""
    headings = HEADING.findall(_without_fenced(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without_fenced(page: Path) -> str:
    return FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))


def main() -> int:
    files = tracked_files()
    known = {*files, *(folder for path in files for folder in path.parents)}
    problems = [problem for path in files if path.suffix == ".md" for problem in problems_of(path, known)]
    print("\n".join(problems) or "every link leads somewhere")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
