# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU builds the lab uses: the one that emulates the hosts, and those that lie on the hosts for their VMs."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, default_root, file_sha256
from .progress import LabError, Progress

BINARY = "bin/qemu-system-x86_64"
BUILD_ID = re.compile(r"qemu-(?P<version>[0-9][0-9.]*)-[0-9a-f]{16}")


@dataclass(frozen=True)
class Artifact:
    """One ``<build_id>.tar.gz``."""

    path: Path
    build_id: str
    sha256: str


def read_artifact(path: Path) -> Artifact:
    """Raises LabError when ``path`` is no QEMU artifact, or not the one its ``.sha256`` names."""
    try:
        with tarfile.open(path) as archive:
            names = {_relative(name): name for name in archive.getnames()}
            manifest_file = archive.extractfile(names["manifest.json"])
            assert manifest_file is not None
            build_id = json.load(manifest_file)["build_id"]
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise LabError(f"{path} is no build artifact: {error!r}") from error
    if BINARY not in names or not BUILD_ID.fullmatch(build_id):
        raise LabError(f"{path} is no QEMU artifact: build id {build_id!r}, {BINARY} must be inside")
    sha256 = file_sha256(path)
    beside = path.with_name(path.name + ".sha256")
    if beside.exists() and beside.read_text().split()[0] != sha256:
        raise LabError(f"{path} does not have the sha256 that {beside.name} names: build it again")
    return Artifact(path, build_id, sha256)


def default_artifact(series: str) -> Path:
    """The artifact of ``series`` (such as ``10.2``) built last. Raises LabError when there is none."""
    folder = default_root() / "artifacts"
    found = sorted(folder.glob(f"qemu-{series}.*.tar.gz"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabError(f"no QEMU {series} artifact in {folder}: build one (playbooks/build.yml) or name one")
    return found[-1]


def unpack(artifact: Artifact, target: Path) -> None:
    """Unpack into the folder ``target``; tar refuses what would lie outside it."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-C", str(target), "--no-same-owner", "-xzf", str(artifact.path)], check=True)


def get_outer_qemu(cache: Cache, given: Path, progress: Progress) -> Path:
    """Folder (``bin/``, ``share/qemu/``) of the QEMU that emulates hosts; an artifact is unpacked into the cache."""
    if given.is_dir():
        folder = given.resolve()
    else:
        artifact = read_artifact(given)

        def build(target: Path) -> None:
            progress.say(f"unpacking {artifact.build_id} to emulate the hosts")
            unpack(artifact, target / "root")

        folder = cache.entry("qemu", {"format": 1, "sha256": artifact.sha256}, build) / "root"
    if not (folder / BINARY).is_file():
        raise LabError(f"{folder} holds no {BINARY}")
    return folder


def _relative(name: str) -> str:
    return name.removeprefix("./")
