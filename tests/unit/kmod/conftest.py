# SPDX-License-Identifier: GPL-3.0-or-later
"""A host in a folder: /proc, /sys, /dev and what is installed, with a kernel whose modules are directories of its /sys."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.boot import BootChoice
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.cores import CoreManager
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import module_information
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.nodes import Nodes
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore, verify_kvm_artifact

RELEASE = "6.12.1-amd64"
VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions"
THIN_BUILD = "ffffffffffffffff"
VM_NAMES = {7: "db", 8: "web"}
MakeArtifact = Callable[..., Path]


def name(number: int) -> str:
    """Name of the core of build ``number``."""
    return f"{number:016x}"


def build_id(number: int) -> str:
    """Id of build ``number``."""
    return f"kvm-6.12.1-{name(number)}"


def module_bytes(**information: object) -> bytes:
    """A module that says this of itself."""
    return b"\x7fELF\0" + b"".join(f"{key}={value}\0".encode() for key, value in information.items())


class FakeKernel(Kernel):
    """Loads and unloads as the kernel would; ``fails`` names modules that do not load. ``said``: all that was asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fails: set[str] = set()
        self.said: list[str] = []
        for path in ("proc/sys/kernel", "sys/module", "sys/kernel", "dev", "run/systemd/system"):
            (root / path).mkdir(parents=True)
        (root / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
        modules = root / "lib/modules" / RELEASE
        (modules / "kernel").mkdir(parents=True)
        (modules / "modules.dep").write_text("updates/dkms/other.ko:\nkernel/one.ko: kernel/two.ko\n")
        (modules / "kernel/one.ko").write_bytes(module_bytes(vermagic=VERMAGIC + " "))

    def load(self, module: Path) -> None:
        self.said.append(f"insmod {module.stem}")
        if module.stem in self.fails:
            raise LiveUpgradeError(f"insmod {module} failed: Operation not supported")
        told = module_information(module)
        self._appear(module.stem, told.get("version", ""))
        if module.stem == "kvm_thin":
            self.cores([])
        elif module.stem.startswith("kvm_core_"):
            self._change_references("kvm_thin", 1)
            new = told["version"]
            cores = self.listed()
            self.cores([*cores, (new, 0, not cores)])
            (self.root / f"dev/kvm-{new}").touch()

    def unload(self, name: str) -> None:
        self.said.append(f"rmmod {name}")
        if self.references(name):
            raise LiveUpgradeError(f"rmmod {name} failed: Module {name} is in use")
        shutil.rmtree(self.root / "sys/module" / name)
        if name in ("kvm_amd", "kvm_intel"):
            self._change_references("kvm", -1)
        if name.startswith("kvm_core_"):
            self._change_references("kvm_thin", -1)
            self.cores([core for core in self.listed() if f"kvm_core_{core[0]}" != name])

    def probe(self, name: str) -> None:
        self.said.append(f"modprobe {name}")
        if not self.loaded(name):
            self._appear(name, "")
        if name == "kvm_amd":
            self.probe("kvm")
            self._change_references("kvm", 1)
            (self.root / "sys/module/kvm/holders/kvm_amd").mkdir(parents=True)

    def set_parameter(self, name: str, parameter: str, value: str) -> None:
        self.said.append(f"{parameter}={value}")
        self.cores([(core, vms, core == value) for core, vms, _default in self.listed()])

    def listed(self) -> list[tuple[str, int, bool]]:
        lines = [line.split() for line in self.parameter("kvm_thin", "cores").splitlines()]
        return [(words[0], int(words[1][4:]), words[3] == "default=1") for words in lines]

    def cores(self, cores: list[tuple[str, int, bool]]) -> None:
        text = "".join(f"{core} vms={vms} enabled=1 default={int(default)}\n" for core, vms, default in cores)
        path = self.root / "sys/module/kvm_thin/parameters/cores"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, *links: str, uses: str = "") -> None:
        """A process with these open; ``uses`` is a module that has a reference by it."""
        folder = self.root / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True)
        for number, link in enumerate(links):
            os.symlink(link, folder / str(number))
        if uses:
            self._change_references(uses, 1)

    def end(self, pid: int, uses: str) -> None:
        """The process ends."""
        shutil.rmtree(self.root / "proc" / str(pid))
        self._change_references(uses, -1)

    def _appear(self, name: str, version: str) -> None:
        folder = self.root / "sys/module" / name
        folder.mkdir()
        for file, text in {"initstate": "live\n", "refcnt": "0\n", "version": f"{version}\n"}.items():
            (folder / file).write_text(text)

    def _change_references(self, name: str, by: int) -> None:
        path = self.root / "sys/module" / name / "refcnt"
        if path.exists():
            path.write_text(f"{int(path.read_text()) + by}\n")


class FakeNodes(Nodes):
    """Nodes are files here; ``bad`` never become what they should be."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bad: set[str] = set()

    def install_rule(self) -> None:
        path = self._root / "run/udev/rules.d/60-kvm-cores.rules"
        path.parent.mkdir(parents=True)
        path.touch()

    def right(self, node: str) -> bool:
        return node not in self.bad and (self._root / node.lstrip("/")).exists()

    def wait(self, node: str) -> None:
        if not self.right(node):
            raise LiveUpgradeError(f"{node} is not there")


class Host:
    """The host, and what manages its cores."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = FakeKernel(root)
        self.nodes = FakeNodes(root)
        self.store = KvmStore(root / "state", RELEASE)
        self.boot = BootChoice(self.store, root)
        self.manager = CoreManager(self.kernel, self.store, self.nodes, self.boot, VM_NAMES.get)

    def present(self, number: int, *, default: bool = False, persist: bool = False) -> list[str]:
        """Have the build there; what was done, in words."""
        changes = self.manager.plan_present(build_id(number), default=default, persist=persist)
        self.manager.apply(changes)
        return [str(change) for change in changes]

    def absent(self, number: int, *, deadline_s: float = 0, persist: bool = False) -> list[str]:
        """Have the build gone; what was done, in words."""
        changes = self.manager.plan_absent(build_id(number), deadline_s=deadline_s, persist=persist)
        self.manager.apply(changes)
        return [str(change) for change in changes]


@pytest.fixture
def make_kvm_artifact(tmp_path: Path) -> MakeArtifact:
    """``make(1, release=..., core={...}, ...)``: an artifact true in form, but for what is given."""

    def make(number: int = 1, core: dict[str, object] | None = None, tail: bytes = b"", **manifest: Any) -> Path:
        abi = manifest.get("thin_abi", 1)
        told = {"vermagic": manifest.get("vermagic", VERMAGIC) + " ", "kvm_thin_abi": abi}
        files = {
            "kvm_thin.ko": module_bytes(version=THIN_BUILD, **told) + tail,
            f"kvm_core_{name(number)}.ko": module_bytes(
                **{"version": name(number), "depends": "kvm_thin,irqbypass", **told, **(core or {})}
            )
            + tail,
        }
        values: dict[str, Any] = {
            "schema": 1,
            "kind": "kvm",
            "build_id": build_id(number),
            "name": name(number),
            "version": "6.12.1",
            "series": "6.12",
            "release": RELEASE,
            "vermagic": VERMAGIC,
            "thin_abi": 1,
            "thin_build": THIN_BUILD,
            "source": {"name": "linux", "sha256": "0" * 64},
            "patches": [],
            "overlay": [],
            "thin": [],
            "compiler": "gcc",
            "architecture": platform.machine(),
            "created": "2026-01-01T00:00:00Z",
            "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
            **manifest,
        }
        path = tmp_path / f"kvm-{name(number)}-{THIN_BUILD}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file, data in {**files, "manifest.json": json.dumps(values).encode()}.items():
                info = tarfile.TarInfo(file)
                info.size, info.mode = len(data), 0o644
                archive.addfile(info, io.BytesIO(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
        return path

    return make


@pytest.fixture
def host(tmp_path: Path, make_kvm_artifact: MakeArtifact) -> Host:
    """A host with the kernel's own KVM, and builds 1 and 2 staged."""
    found = Host(tmp_path / "host")
    for number in (1, 2):
        artifact = make_kvm_artifact(number)
        found.store.stage(artifact, verify_kvm_artifact(artifact, None, None))
    found.kernel.probe("kvm_amd")
    found.kernel.said.clear()
    return found
