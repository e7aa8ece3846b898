# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of our own, out of Debian's source: with checks that no kernel at work should have."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, file_sha256
from .chroot import run, run_in
from .kernel import Kernel
from .progress import LabError, Progress

CONFIGS = Path(__file__).resolve().parent.parent / "kernels"
# In the root: the source while it is compiled, and what stays of it.
TREE = Path("usr/src/own-kernel")
INSTALLED = Path("usr/src/own-kernel-modules")


@dataclass(frozen=True)
class OwnKernel(Kernel):
    """``root``: a root like that of ``get_build_root``, to build modules for this kernel in: it has its headers.

    The kernel trusts modules that are signed with ``signing_key``, which was made for it.
    """

    root: Path

    @property
    def signing_key(self) -> Path:
        return self._headers / "certs/signing_key.pem"

    @property
    def certificate(self) -> Path:
        return self._headers / "certs/signing_key.x509"

    @property
    def _headers(self) -> Path:
        return self.root / "usr/src" / f"linux-headers-{self.release}"


def get_own_kernel(cache: Cache, name: str, debian: Kernel, root: Path, progress: Progress) -> OwnKernel:
    """The kernel with the configuration ``kernels/<name>.config``, from the cache or built into it.

    ``root`` is the one to build modules for ``debian`` in: the source is that of ``debian``. As root; it takes ten minutes.
    """
    options = wanted_options(CONFIGS / f"{name}.config")
    material = {"format": 1, "source": debian.version, "options": options}

    def build(folder: Path) -> None:
        progress.say(f"compiling a kernel {name} out of Debian's {debian.version}, which takes a while")
        began_s = progress.elapsed_s()
        facts = _Build(folder, debian).run(root, options)
        (folder / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")
        progress.say(f"{facts['release']} is ready after {progress.elapsed_s() - began_s:.0f} s")

    folder = cache.entry(f"kernel-{name}", material, build)
    facts = json.loads((folder / "kernel.json").read_text())
    return OwnKernel(folder, facts["release"], name, debian.version, facts["sha256"], folder / "root")


def wanted_options(path: Path) -> dict[str, str]:
    """The options that a configuration names. Raises LabError for a line that would be ignored."""
    options: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(CONFIG_\w+)=(\S+)", line)
        if match is None:
            raise LabError(f"{path}:{number}: {line!r} is not CONFIG_<name>=<value>; what is to be off is =n")
        options[match[1]] = match[2]
    return options


def unmet(options: dict[str, str], configuration: str) -> list[str]:
    """The options that came out otherwise, in words: another one that they need is not named, or the kernel has them no more."""
    found = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", configuration, re.MULTILINE))
    return [
        f"{name} is {found.get(name, 'n')} and not {value}"
        for name, value in options.items()
        if found.get(name, "n") != value
    ]


class _Build:
    """One build, in the empty ``folder`` of a cache entry."""

    def __init__(self, folder: Path, debian: Kernel) -> None:
        self._folder = folder
        self._root = folder / "root"
        self._series = ".".join(debian.release.split(".")[:2])

    def run(self, root: Path, options: dict[str, str]) -> dict[str, str]:
        """Fill the folder; return what there is to know of the kernel."""
        _link_tree(root, self._root)
        self._unpack()
        self._configure(options)
        self._make(f"-j{os.cpu_count()}", "bzImage", "modules")
        release = self._make("kernelrelease").split()[-1]
        self._install(release)
        shutil.rmtree(self._root / TREE)
        return {"release": release, "sha256": file_sha256(self._folder / "vmlinuz")}

    def _unpack(self) -> None:
        tarball = self._root / "usr/src" / f"linux-source-{self._series}.tar.xz"
        tree = self._root / TREE
        tree.mkdir()
        run(["tar", "-C", str(tree), "--strip-components=1", "-xf", str(tarball)], f"{tarball} cannot be unpacked")

    def _configure(self, options: dict[str, str]) -> None:
        """All that is not named is off."""
        wanted = self._root / TREE / "wanted.config"
        wanted.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        self._make("KCONFIG_ALLCONFIG=wanted.config", "allnoconfig")
        if wrong := unmet(options, (self._root / TREE / ".config").read_text()):
            raise LabError("the kernel cannot be configured as wanted: " + ", ".join(wrong))

    def _install(self, release: str) -> None:
        shutil.copy(self._root / TREE / "arch/x86/boot/bzImage", self._folder / "vmlinuz")
        # Stripped before they are signed, which is the order in which the kernel's own installation does it.
        self._make(f"INSTALL_MOD_PATH=/{INSTALLED}", "INSTALL_MOD_STRIP=1", "DEPMOD=/bin/true", "modules_install")
        modules = self._root / INSTALLED / "lib/modules" / release
        (modules / "build").unlink()
        shutil.copytree(modules, self._folder / "lib/modules" / release)
        shutil.rmtree(self._root / INSTALLED)
        headers = Path("usr/src") / f"linux-headers-{release}"
        self._make("run-command", f"KBUILD_RUN_COMMAND=+sh scripts/package/install-extmod-build /{headers}")
        shutil.copy(self._root / TREE / ".config", self._root / headers / ".config")
        shutil.copytree(self._root / TREE / "certs", self._root / headers / "certs", ignore=_all_but_the_key)
        (self._root / headers / "certs/signing_key.pem").chmod(0o600)

    def _make(self, *arguments: str) -> str:
        command = ["make", "--silent", "-C", f"/{TREE}", *arguments]
        return run_in(self._root, command, f"make {arguments[-1]} of the kernel failed")


def _link_tree(root: Path, target: Path) -> None:
    """Have the same root once more, by links: nobody writes to a file in it, but where other builds are under way."""

    def busy(folder: str, names: list[str]) -> list[str]:
        return names if folder == str(root / "var/tmp") else []

    shutil.copytree(root, target, symlinks=True, copy_function=os.link, ignore=busy)


def _all_but_the_key(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name not in ("signing_key.pem", "signing_key.x509")]
