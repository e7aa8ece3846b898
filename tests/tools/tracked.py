# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that are, or would be, under version control."""

from __future__ import annotations

import subprocess
from pathlib import Path

from checkout import ROOT


def tracked_files() -> list[Path]:
    """Return all files of the checkout that git knows or does not ignore, relative to it, sorted."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sorted(Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())
