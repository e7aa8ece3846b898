# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-builder reads the execution environment of the examples, and what the collection says that it needs there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.vmm.live_upgrade.tests.integration.rollout.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "execution-environment"
BUILDER = str(Path(sys.executable).with_name("ansible-builder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example with a tarball beside it, as its text has it."""
    place = tmp_path / "ee"
    shutil.copytree(EXAMPLE, place)
    version = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text())["version"]
    (place / f"vmm-live_upgrade-{version}.tar.gz").write_bytes(b"")
    return place


def create(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [BUILDER, "create", "--context", "context", "--output-filename", "Containerfile"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_build_context_has_the_collection_and_installs_it(folder: Path) -> None:
    done = create(folder)

    assert done.returncode == 0, done.stdout + done.stderr
    build = folder / "context" / "_build"
    (wanted,) = yaml.safe_load((build / "requirements.yml").read_text())["collections"]
    assert wanted["type"] == "file"
    assert (build / wanted["name"]).is_file(), "what is installed is where the build looks for it"
    containerfile = (folder / "context" / "Containerfile").read_text()
    assert "ansible-galaxy collection install" in containerfile and "ansible-core>=2.19" in containerfile
    assert (build / "bindep.txt").read_text() == (EXAMPLE / "bindep.txt").read_text()


def test_a_definition_that_is_wrong_is_refused(folder: Path) -> None:
    """Else the test above would show nothing."""
    path = folder / "execution-environment.yml"
    path.write_text(path.read_text().replace("dependencies:", "dependences:"))

    assert create(folder).returncode != 0


def test_the_collection_says_what_it_needs(tmp_path: Path) -> None:
    collection = tmp_path / "ansible_collections" / "vmm" / "live_upgrade"
    collection.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "meta", collection / "meta")
    shutil.copy2(REPOSITORY / "galaxy.yml", collection)
    command = [BUILDER, "introspect", str(tmp_path)]
    command += ["--write-bindep", str(tmp_path / "found"), "--write-pip", str(tmp_path / "packages")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "openssh-clients [platform:rpm]" in (tmp_path / "found").read_text()
    assert "paramiko" in (tmp_path / "packages").read_text()
