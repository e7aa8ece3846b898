#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the collection's tarball from the tracked files, and installs it where asked.

collection.py [--install FOLDER]    FOLDER gets ansible_collections/vmm/live_upgrade from the tarball
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from checkout import BUILD, ROOT, environment
from tracked import tracked_files

DIST = BUILD / "dist"


def build() -> Path:
    """Return the path of the tarball. Raises ``CalledProcessError`` when ansible-galaxy refuses.

    Files are taken as they are in the work tree, but only those that git knows or would add: what lies about in a work
    tree must not ship.
    """
    with tempfile.TemporaryDirectory(dir=_folder(BUILD)) as work:
        for name in tracked_files():
            target = Path(work) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        subprocess.run(
            ["ansible-galaxy", "collection", "build", "--force", "--output-path", str(_folder(DIST)), work],
            check=True,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
    tarballs = sorted(DIST.glob("vmm-live_upgrade-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    return tarballs[-1]


def install(tarball: Path, folder: Path) -> Path:
    """Install ``tarball`` alone into ``folder`` and return the collection's path in it. What was there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        ["ansible-galaxy", "collection", "install", "--offline", "--collections-path", str(folder), str(tarball)],
        check=True,
        env=environment(ANSIBLE_COLLECTIONS_PATH=str(folder)),
        stdout=subprocess.DEVNULL,
    )
    return folder / "ansible_collections" / "vmm" / "live_upgrade"


def _folder(path: Path) -> Path:
    os.makedirs(path, exist_ok=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, and install, the collection's tarball.")
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    tarball = build()
    print(tarball.relative_to(ROOT))
    if arguments.install:
        print(install(tarball, arguments.install.absolute()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
