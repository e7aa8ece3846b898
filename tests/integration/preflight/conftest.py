# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A state directory with a staged 11.1, and VMs that run a 10.2: the world that preflight judges."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.manifest import Manifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import SCHEMA
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import (
    LocalQemu,
    QemuFactory,
    firmware,
    marked_copy,
)

OLD_BUILD = "qemu-10.2.2-00000000000000aa"
NEW_BUILD = "qemu-11.1.1-00000000000000bb"
MACHINE = "pc-q35-10.2"


@dataclass(frozen=True)
class World:
    """``state_dir`` has the new build staged; ``start`` starts VMs, by default on an unstaged copy of the old one."""

    state_dir: Path
    start: QemuFactory
    old_original: Path

    def vm(self, name: str = "web1", **options: Any) -> LocalQemu:
        """Start a VM of the old build."""
        options.setdefault("machine", MACHINE)
        return self.start(name, like=self.old_original, **options)

    def judge(self, name: str = "web1", **request: Any) -> Verdict:
        """Return the verdict on one VM."""
        judged = judge_host(PreflightRequest(NEW_BUILD, str(self.state_dir), [name], **request))
        assert len(judged) == 1
        return judged[0].verdict

    def edit_dump(self, section: str, values: dict[str, Any] | None) -> None:
        """Change ``section`` of what the staged build says about its device state, or with None take it out.

        The manifest is made true again.
        """
        build = self.state_dir / "builds" / NEW_BUILD
        path = build / "vmstate" / f"{MACHINE}.json"
        dump = json.loads(path.read_text())
        if values is None:
            del dump[section]
        else:
            dump[section].update(values)
            dump[section]["Description"].update(values)
        path.write_text(json.dumps(dump))
        write_manifest(build, NEW_BUILD, [MACHINE])

    def edit_manifest(self, **values: Any) -> None:
        """Change what the staged build's manifest says."""
        path = self.state_dir / "builds" / NEW_BUILD / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="session")
def staged_once(tmp_path_factory: pytest.TempPathFactory, qemu_new: Path) -> Path:
    """The new build, unpacked as in the store."""
    build = tmp_path_factory.mktemp("staged") / NEW_BUILD
    stage(build, qemu_new, NEW_BUILD, [MACHINE])
    return build


@pytest.fixture(scope="session")
def old_binary(tmp_path_factory: pytest.TempPathFactory, qemu_old: Path) -> Path:
    """A 10.2 that tells a build id."""
    return marked_copy(qemu_old, tmp_path_factory.mktemp("old") / "qemu-system-x86_64", OLD_BUILD)


@pytest.fixture
def world(tmp_path: Path, staged_once: Path, old_binary: Path, qemu_old: Path) -> Iterator[World]:
    """The world of one test; what it starts ends with it."""
    state_dir = tmp_path / "state"
    shutil.copytree(staged_once, state_dir / "builds" / NEW_BUILD)
    factory = QemuFactory(tmp_path, old_binary, "tcg")
    yield World(state_dir, factory, qemu_old)
    factory.close()


def stage(build: Path, binary: Path, build_id: str, machines: list[str]) -> None:
    """Lay a build out as the store does, its descriptions made by the binary itself."""
    copy = marked_copy(binary, build / "bin" / "qemu-system-x86_64", build_id)
    (build / "vmstate").mkdir()
    for machine in machines:
        target = build / "vmstate" / f"{machine}.json"
        command = [str(copy), *firmware(binary), "-nodefaults", "-display", "none", "-machine", machine]
        subprocess.run([*command, "-dump-vmstate", str(target)], check=True)
    write_manifest(build, build_id, machines)


def write_manifest(build: Path, build_id: str, machines: list[str]) -> None:
    """Write a manifest that tells the truth about the files."""
    files = [path for path in sorted(build.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    version = build_id.split("-")[1]
    manifest = Manifest(
        schema=SCHEMA,
        kind="qemu",
        build_id=build_id,
        version=version,
        series=version.rpartition(".")[0],
        source={"name": "test", "sha256": "0" * 64},
        patches=[],
        overlay=[],
        configure=[],
        compiler="test",
        architecture="x86_64",
        created="2026-01-01T00:00:00Z",
        machine_types=machines,
        capabilities=["cpr-vfork"],
        files={str(path.relative_to(build)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        gnu_build_id="00",
        libraries=[],
    )
    (build / "manifest.json").write_text(json.dumps(manifest.to_dict()))
