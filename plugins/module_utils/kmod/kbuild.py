# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's build system, on this machine or in a root of another Debian. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import is_signed
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.signing import Signing

# What make says where a kernel is built without the means for it; nothing depends on type information here.
_HARMLESS = re.compile(r"Skipping BTF generation")


@dataclass(frozen=True)
class Kbuild:
    """Headers of the kernel ``release`` in ``root``, which is ``/`` or a folder to chroot to (as root)."""

    root: Path
    release: str

    @property
    def headers(self) -> Path:
        """The headers, as seen from here."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    def check(self) -> None:
        """Raise ``LiveUpgradeError`` naming what is missing to build."""
        if not (self.headers / "Module.symvers").is_file():
            raise LiveUpgradeError(f"{self.headers} is not there: install linux-headers-{self.release} in {self.root}")
        for tool, package in {"gcc": "gcc", "make": "make", "strip": "binutils"}.items():
            if not (self.root / "usr" / "bin" / tool).exists():
                raise LiveUpgradeError(f"there is no {tool} in {self.root}: install {package}")

    def identity(self) -> dict[str, str]:
        """What of the kernel and of the tools goes into a module."""
        return {
            "release": self.release,
            "symbols": sha256_of(self.headers / "Module.symvers"),
            "configuration": sha256_of(self.headers / "include" / "config" / "auto.conf"),
            "compiler": self.run("gcc", "--version").splitlines()[0],
        }

    def modules(self, folder: Path, jobs: int, **variables: str) -> None:
        """Build the modules of ``folder``. Raises ``LiveUpgradeError`` when it fails, and when anything is complained of."""
        said = self.run(
            *("make", "--silent", f"--jobs={jobs}", "-C", self.inside(self.headers), f"M={self.inside(folder)}"),
            *(f"{name}={value}" for name, value in variables.items()),
            "modules",
        )
        complaints = [line for line in said.splitlines() if "warning" in line.lower() and not _HARMLESS.search(line)]
        if complaints:
            raise LiveUpgradeError(f"the build of {folder.name} is not clean: {' | '.join(complaints[:5])}")

    def check_signing(self, signing: Signing) -> dict[str, str]:
        """Return what a signature is known by. Raises ``LiveUpgradeError`` when nothing can be signed with that."""
        if not self._sign_file.is_file():
            raise LiveUpgradeError(f"there is no {self._sign_file}: the headers of {self.release} cannot sign modules")
        signing.check()
        for path in (signing.key, signing.certificate):
            if self.root not in path.resolve().parents:
                raise LiveUpgradeError(f"{path} does not lie in {self.root}, where modules are signed: put it there")
        return {"certificate": signing.certificate_sha256, "hash": signing.hash}

    def sign(self, module: Path, signing: Signing) -> None:
        """Append a signature to a module. Raises ``LiveUpgradeError``."""
        files = [self.inside(path.resolve()) for path in (signing.key, signing.certificate)]
        self.run(self.inside(self._sign_file), signing.hash, *files, self.inside(module))
        if not is_signed(module):
            raise LiveUpgradeError(f"sign-file left {module.name} without a signature")

    @property
    def _sign_file(self) -> Path:
        return self.headers / "scripts" / "sign-file"

    def strip(self, module: Path) -> None:
        """Remove the debug information of a module."""
        self.run("strip", "--strip-debug", self.inside(module))

    def inside(self, path: Path) -> str:
        """The path as seen in the root. Raises ``ValueError`` for one outside."""
        return str(Path("/") / path.relative_to(self.root))

    def run(self, *command: str) -> str:
        """Run a command in the root; return all it says. Raises ``LiveUpgradeError`` with the last of that on failure."""
        prefix = [] if self.root == Path("/") else ["chroot", str(self.root)]
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        done = subprocess.run(
            [*prefix, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            words = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines()
            raise LiveUpgradeError(f"{command[0]} failed with status {done.returncode}: {' | '.join(words[-6:])}")
        return done.stdout
