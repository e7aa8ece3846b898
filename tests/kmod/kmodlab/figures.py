# SPDX-License-Identifier: GPL-3.0-or-later
"""How much there is to trust: lines of kvm_thin, which cannot be replaced live, and what a series changes."""

from __future__ import annotations

import re
from pathlib import Path


def source_figures(kmod: Path) -> list[str]:
    """A line for kvm_thin and one for each series of patches and fixes in the folder ``kmod``."""
    lines = sum(code_lines(path.read_text()) for path in sorted((kmod / "kvm_thin").glob("*.[ch]")))
    told = [f"kvm_thin: {lines} lines of C without blank ones and comments"]
    for series in sorted([*(kmod / "patches").iterdir(), *(kmod / "fixes").iterdir()]):
        told.append(f"{series.relative_to(kmod)}: {diffstat(series)}")
    overlay = sorted((kmod / "overlay").rglob("*.[ch]"))
    told.append(f"overlay: {sum(code_lines(path.read_text()) for path in overlay)} such lines in {len(overlay)} files")
    return told


def code_lines(source: str) -> int:
    """Lines that hold more than blanks and comments."""
    without = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    without = re.sub(r"//[^\n]*", "", without)
    return sum(1 for line in without.splitlines() if line.strip())


def diffstat(series: Path) -> str:
    """What the patches in the folder ``series`` change, in the words of git."""
    files: set[str] = set()
    added = removed = patches = 0
    for patch in sorted(series.glob("*.patch")):
        patches += 1
        for line in patch.read_text().splitlines():
            if line.startswith("+++ "):
                files.add(line.removeprefix("+++ b/"))
            elif line.startswith("+"):
                added += 1
            elif line.startswith("-") and not line.startswith(("--- ", "-- ")) and line != "---":
                removed += 1
    return f"{patches} patches, {len(files)} files changed, {added} insertions(+), {removed} deletions(-)"
