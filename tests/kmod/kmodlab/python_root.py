# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine needs besides to run the modules of the collection: this Python, Ansible's part of it, and artifacts."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import ansible
from checkout import ROOT

from vmmlab.cpio import CpioArchive

from .builds import Modules

DRIVER = Path(__file__).resolve().parent.parent / "guest_driver.py"
PYTHON = Path(sys.executable).resolve()
# Large, and of no use there.
LEFT_OUT = {
    "__pycache__",
    "test",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}
COLLECTION = "py/ansible_collections/vmm/live_upgrade/plugins"


def python_root(modules: Modules) -> bytes:
    """Return an initial root to be unpacked over the other one, packed."""
    archive = CpioArchive()
    stdlib = Path(sysconfig.get_path("stdlib"))
    extensions = stdlib / "lib-dynload"
    archive.copy(f"usr/bin/{PYTHON.name}", PYTHON)
    archive.symlink("usr/bin/python3", PYTHON.name)
    for path in _files(stdlib):
        if not path.relative_to(stdlib).parts[0].startswith("config-"):
            archive.copy(str(path).lstrip("/"), path)
    for library in sorted(_libraries([PYTHON, *extensions.glob("*.so")])):
        archive.copy(str(library).lstrip("/"), library)
    package = Path(ansible.__file__).parent
    archive.file("py/ansible/__init__.py", b"")  # as on a host
    for path in _files(package / "module_utils"):
        archive.copy(f"py/ansible/{path.relative_to(package)}", path)
    for folder in ("modules", "module_utils"):
        for path in _files(ROOT / "plugins" / folder):
            archive.copy(f"{COLLECTION}/{path.relative_to(ROOT / 'plugins')}", path)
    archive.copy("py/driver.py", DRIVER)
    for name, artifact in modules.artifacts.items():
        for path in (artifact, artifact.with_name(f"{artifact.name}.sha256")):
            archive.copy(f"artifacts/{name}/{path.name}", path)
    return gzip.compress(archive.data(), 1, mtime=0)


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not LEFT_OUT.intersection(path.relative_to(folder).parts))


def _libraries(binaries: list[Path]) -> set[Path]:
    """The shared libraries that these need, by the names that they are looked for."""
    found: set[Path] = set()
    for binary in binaries:
        said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}
    return found
