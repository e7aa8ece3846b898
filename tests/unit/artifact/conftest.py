# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-in artifacts: whole and true in form, with a shell script where QEMU would be."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """#!/bin/sh
case "$1" in
--version) echo "QEMU emulator version {version} (vmm.live_upgrade build {build_id})" ;;
-machine) echo "pc-q35-10.2   Standard PC" ;;
*) exec sleep "$1" ;;
esac
"""
Members = list[tuple[tarfile.TarInfo, bytes]]
MakeArtifact = Callable[..., Path]


def member(name: str, data: bytes = b"", mode: int = 0o644, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One member of an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def write_tar(path: Path, members: Members) -> Path:
    """Write an archive and its digest file."""
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """``make_artifact(number=1, manifest={...}, extra=[...], script=...)`` writes an artifact and returns its path."""

    def make(
        number: int = 1,
        manifest: dict[str, Any] | None = None,
        extra: Members | None = None,
        script: str = SCRIPT,
        listed: dict[str, str] | None = None,
    ) -> Path:
        build_id = f"qemu-11.1.1-{number:016x}"
        binary = script.format(version="11.1.1", build_id=build_id).encode()
        firmware = b"firmware" * number
        files = {
            "bin/qemu-system-x86_64": hashlib.sha256(binary).hexdigest(),
            "share/qemu/bios-256k.bin": hashlib.sha256(firmware).hexdigest(),
        }
        values: dict[str, Any] = {
            "schema": 1,
            "kind": "qemu",
            "build_id": build_id,
            "version": "11.1.1",
            "series": "11.1",
            "source": {"name": "qemu.tar.xz", "sha256": "0" * 64},
            "patches": [],
            "overlay": [],
            "capabilities": ["cpr-vfork"],
            "configure": [],
            "compiler": "gcc",
            "architecture": platform.machine(),
            "created": "2026-01-01T00:00:00Z",
            "machine_types": ["pc-q35-10.2"],
            "files": {**files, **(listed or {})},
            "gnu_build_id": "",
            "libraries": [],
            **(manifest or {}),
        }
        members = [
            member("bin", type=tarfile.DIRTYPE, mode=0o755),
            member("bin/qemu-system-x86_64", binary, 0o755),
            member("manifest.json", json.dumps(values).encode()),
            member("share/qemu/bios-256k.bin", firmware),
            *(extra or []),
        ]
        return write_tar(tmp_path / f"{build_id}.tar.gz", members)

    return make
