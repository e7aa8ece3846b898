# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that build something, here or in another root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .progress import LabError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOLD_LINES = 15


def run_in(root: Path, command: list[str], failure: str) -> str:
    """Run ``command`` with ``root`` as its root, as ``run`` does. As root."""
    return run(["chroot", str(root), *command], failure)


def run(command: list[str], failure: str) -> str:
    """Return what ``command`` writes. Raises LabError with ``failure`` and the last of what it complains of."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": PATH}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise LabError(f"{failure}:\n" + "\n".join((done.stderr or done.stdout).splitlines()[-TOLD_LINES:]))
    return done.stdout
