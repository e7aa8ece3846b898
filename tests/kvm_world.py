# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory that looks as a host with kvm_thin does: nodes, the list of cores, staged builds.

Each core is this machine's own KVM under another name.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import SCHEMA
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import KIND, KmodManifest

CORE_A, CORE_B = "00000000000000aa", "00000000000000bb"
BUILD_A, BUILD_B = f"kvm-6.12.118-{CORE_A}", f"kvm-6.12.119-{CORE_B}"


class KvmWorld:
    """``root`` stands for ``/``: nodes are in ``root/dev``; ``state_dir`` is where builds are staged."""

    def __init__(self, directory: Path) -> None:
        """Stock KVM: no core is loaded, none is staged, and there is no node but /dev/kvm."""
        self.root = directory / "root"
        self.state_dir = directory / "state"
        (self.root / "dev").mkdir(parents=True)
        (self.root / "proc/sys/kernel").mkdir(parents=True)
        (self.root / "proc/sys/kernel/osrelease").write_text(f"{os.uname().release}\n")

    def stage(self, build_id: str, release: str | None = None) -> None:
        """Lay down the manifest of a build, as if it were staged for ``release``, by default the kernel that runs."""
        release = release or os.uname().release
        directory = self.state_dir / "kvm" / release / build_id
        directory.mkdir(parents=True)
        _kvm, version, name = build_id.split("-")
        KmodManifest(
            schema=SCHEMA,
            kind=KIND,
            build_id=build_id,
            name=name,
            version=version,
            series="6.12",
            release=release,
            vermagic=release,
            thin_abi=1,
            thin_build="0" * 16,
            source={},
            patches=[],
            overlay=[],
            thin=[],
            compiler="test",
            architecture="x86_64",
            created="2026-01-01T00:00:00Z",
            files=dict.fromkeys(("kvm_thin.ko", f"kvm_core_{name}.ko"), "0" * 64),
        ).write(directory)

    def load(self, *cores: str, default: str | None = None) -> None:
        """Let kvm_thin list these cores, the first or ``default`` as that of /dev/kvm."""
        path = self.root / "sys/module/kvm_thin/parameters/cores"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} vms=0 enabled=1 default={int(name == (default or cores[0]))}\n" for name in cores]
        path.write_text("".join(lines))

    def node(self, core: str) -> Path:
        """The node of ``core``."""
        return self.root / "dev" / f"kvm-{core}"

    def make_node(self, core: str, like: str = "/dev/kvm", mode: int = 0o666) -> Path:
        """Make the node of ``core``, a second one of the device ``like`` (as root)."""
        node = self.node(core)
        os.mknod(node, stat.S_IFCHR | 0o600, os.stat(like).st_rdev)
        node.chmod(mode)
        return node

    def core(self, core: str, build_id: str) -> Path:
        """Make a whole core: staged and with a node; ``load`` lists it."""
        self.stage(build_id)
        return self.make_node(core)
