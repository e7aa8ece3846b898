# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel source that Debian had before that of the hosts' kernel: an upgrade puts cores of both into one kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from vmmlab.cache import Cache
from vmmlab.debian import PrivateApt, version_key
from vmmlab.generation import Generation
from vmmlab.kernel import Kernel
from vmmlab.progress import LabError, Progress


def get_older_source(cache: Cache, kernel: Kernel, progress: Progress, generation: Generation) -> Path:
    """The tarball of the newest source older than that of ``kernel``, from the cache or fetched into it. Raises LabError."""
    name = f"linux-source-{generation.series}"

    def build(folder: Path) -> None:
        progress.say(f"fetching the {name} before {kernel.version}")
        apt = PrivateApt(folder / "apt", generation.suite)
        apt.update()
        known = apt.candidates(re.compile(re.escape(name)))
        older = [candidate for candidate in known if _linux(candidate.version) < _linux(kernel.version)]
        _, package = apt.fetch_first(older, folder, progress)
        done = subprocess.run(
            ["dpkg-deb", "-x", str(package), str(folder / "unpacked")], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise LabError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
        (folder / "unpacked/usr/src" / f"{name}.tar.xz").rename(folder / f"{name}.tar.xz")
        for leftover in (folder / "apt", folder / "unpacked"):
            shutil.rmtree(leftover)
        package.unlink()

    material = {"format": 1, "suite": generation.suite, "package": name, "before": kernel.version}
    return cache.entry("kmod-older", material, build) / f"{name}.tar.xz"


def _linux(version: str) -> list[int]:
    """The release of Linux in a version of Debian: revisions of one may have the same KVM."""
    return version_key(version)[:3]
