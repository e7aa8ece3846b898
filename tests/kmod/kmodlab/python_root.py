# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine needs besides to run the modules of the collection: this Python, Ansible's part of it, and artifacts."""

from __future__ import annotations

import gzip
from pathlib import Path

import ansible
from checkout import ROOT

from vmmlab.cpio import CpioArchive
from vmmlab.python_files import add_folder, add_python

from .builds import Modules

DRIVER = Path(__file__).resolve().parent.parent / "guest_driver.py"
COLLECTION = "py/ansible_collections/vmm/live_upgrade/plugins"


def python_root(modules: Modules) -> bytes:
    """Return an initial root to be unpacked over the other one, packed."""
    archive = CpioArchive()
    add_python(archive)
    archive.file("py/ansible/__init__.py", b"")  # as on a host
    add_folder(archive, "py/ansible/module_utils", Path(ansible.__file__).parent / "module_utils")
    for folder in ("modules", "module_utils"):
        add_folder(archive, f"{COLLECTION}/{folder}", ROOT / "plugins" / folder)
    archive.copy("py/driver.py", DRIVER)
    for name, artifact in modules.artifacts.items():
        for path in (artifact, artifact.with_name(f"{artifact.name}.sha256")):
            archive.copy(f"artifacts/{name}/{path.name}", path)
    return gzip.compress(archive.data(), 1, mtime=0)
