# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel source that Debian had before that of the hosts' kernel: an upgrade puts cores of both into one kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from vmmlab.cache import Cache
from vmmlab.debian import SUITE, PrivateApt, version_key
from vmmlab.kernel import Kernel
from vmmlab.progress import LabError, Progress

from .root import SERIES

PACKAGE = f"linux-source-{SERIES}"


def get_older_source(cache: Cache, kernel: Kernel, progress: Progress) -> Path:
    """The tarball of the newest source older than that of ``kernel``, from the cache or fetched into it. Raises LabError."""

    def build(folder: Path) -> None:
        progress.say(f"fetching the {PACKAGE} before {kernel.version}")
        apt = PrivateApt(folder / "apt")
        apt.update()
        known = apt.candidates(re.compile(re.escape(PACKAGE)))
        older = [candidate for candidate in known if version_key(candidate.version) < version_key(kernel.version)]
        _, package = apt.fetch_first(older, folder, progress)
        done = subprocess.run(
            ["dpkg-deb", "-x", str(package), str(folder / "unpacked")], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise LabError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
        (folder / "unpacked/usr/src" / f"{PACKAGE}.tar.xz").rename(folder / f"{PACKAGE}.tar.xz")
        for leftover in (folder / "apt", folder / "unpacked"):
            shutil.rmtree(leftover)
        package.unlink()

    material = {"format": 1, "suite": SUITE, "package": PACKAGE, "before": kernel.version}
    return cache.entry("kmod-older", material, build) / f"{PACKAGE}.tar.xz"
