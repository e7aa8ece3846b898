#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that every file names its license, that the license is one of ours, and that its text is in LICENSES/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from checkout import ROOT
from tracked import tracked_files

TAG = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+-]+)")
LOOKED_AT_BYTES = 4096

# What becomes part of QEMU or of the kernel, or of a guest beside the kernel, has the license usual there; all else the
# collection's.
REQUIRED = {
    "kmod": "GPL-2.0-only",
    "qemu": "GPL-2.0-or-later",
    "tests/integration/lab/fault_on_load": "GPL-2.0-or-later",
    "tests/kmod/guest": "GPL-2.0-or-later",
    "tests/lab/guest": "GPL-2.0-or-later",
    "tests/vfio/guest": "GPL-2.0-only",
}
DEFAULT = "GPL-3.0-or-later"

# Files whose format has no room for a comment, with what covers them.
WITHOUT_COMMENTS = {
    ".json": "JSON has no comments; it is covered by DEFAULT",
    ".png": "binary",
}
# Texts that are not ours to mark, and what a tool writes.
EXEMPT = {
    "LICENSES": "the licenses themselves",
    "CHANGELOG.md": "written by antsibull-changelog",
    "changelogs/changelog.yaml": "written by antsibull-changelog",
}


def problem_of(path: Path) -> str | None:
    """Return what is wrong with the license line of ``path`` (relative to the checkout), or None."""
    if path.suffix in WITHOUT_COMMENTS or any(str(part) in EXEMPT for part in (path, *path.parents)):
        return None
    head = (ROOT / path).read_bytes()[:LOOKED_AT_BYTES].decode(errors="replace")
    if not head:
        return None
    found = TAG.search(head)
    wanted = next((REQUIRED[str(folder)] for folder in path.parents if str(folder) in REQUIRED), DEFAULT)
    if found is None:
        return f"no SPDX-License-Identifier; it should be {wanted}"
    if found[1] != wanted:
        return f"says {found[1]}; it should be {wanted}"
    if path.parts[0] == "plugins" and path.suffix == ".py" and "GNU General Public License v3.0+" not in head:
        return "ansible-test wants the copyright and the GPL line of the other plugins too"
    return None


def main() -> int:
    problems = [f"{path}: {problem}" for path in tracked_files() if (problem := problem_of(path))]
    for license_id in {DEFAULT, *REQUIRED.values()}:
        if not (ROOT / "LICENSES" / f"{license_id}.txt").is_file():
            problems.append(f"LICENSES/{license_id}.txt: missing")
    print("\n".join(problems) or "every file names its license")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
