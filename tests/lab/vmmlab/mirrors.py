# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the lab gets Debian from: the archives that this machine's apt is set up with, and from nowhere else."""

from __future__ import annotations

import re
import subprocess

from .progress import LabError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def source_lines(suite: str) -> list[str]:
    """Lines of an apt source list for ``suite`` with its updates, and its security updates where their mirror is known.

    Backports have neither.
    Raises LabError when apt is set up with no archive.
    """
    mirrors = _mirrors()
    security = [mirror for mirror in mirrors if mirror.endswith("/debian-security")]
    others = [mirror for mirror in mirrors if mirror not in security]
    if not others:
        raise LabError("apt is set up with no Debian mirror that is reached by http: add one to its sources")
    # Programs of others for Debian come from mirrors too; Debian's own go by this name nearly everywhere.
    archive = next((mirror for mirror in others if mirror.endswith("/debian")), others[0])
    if suite.endswith("-backports"):
        return [_line(archive, suite)]
    lines = [_line(archive, suite), _line(archive, f"{suite}-updates")]
    return lines + [_line(mirror, f"{suite}-security") for mirror in security[:1]]


def _line(mirror: str, suite: str) -> str:
    return f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main"


def _mirrors() -> list[str]:
    """All that apt would ask for an update, in its order. No index need have been fetched before."""
    command = ["apt-get", "--print-uris", "update"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"apt of this machine cannot be asked for its mirrors: {error}") from error
    return list(dict.fromkeys(re.findall(r"^'(https?://\S+?)/dists/", done.stdout, re.MULTILINE)))
