#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs shellcheck over every shell script, known by its name or its first line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from checkout import ROOT
from tracked import tracked_files

SHEBANG = re.compile(rb"#!\s*\S*(?:/|\s)(?:ba|da|busybox )?sh\b")


def is_shell(path: Path) -> bool:
    """Whether ``path`` (relative to the checkout) is a script for sh or bash."""
    if path.suffix in (".sh", ".bash"):
        return True
    with open(ROOT / path, "rb") as stream:
        return SHEBANG.match(stream.read(64)) is not None


def main() -> int:
    scripts = [str(path) for path in tracked_files() if is_shell(path)]
    print(f"{len(scripts)} scripts: {' '.join(scripts)}", flush=True)
    # SC2187 says that busybox sh is checked as dash, which is what we want.
    return subprocess.run(["shellcheck", "--exclude=SC2187", "--", *scripts], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
