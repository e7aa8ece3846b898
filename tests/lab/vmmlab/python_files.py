# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's Python, programs and their libraries, for an initial root: what runs here runs there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from .cpio import CpioArchive

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


def add_python(archive: CpioArchive) -> None:
    """Add Python with its standard library as ``/usr/bin/python3``, with the shared libraries that they need."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    archive.copy(f"usr/bin/{PYTHON.name}", PYTHON)
    archive.symlink("usr/bin/python3", PYTHON.name)
    for path in files(stdlib):
        if not path.relative_to(stdlib).parts[0].startswith("config-"):
            archive.copy(str(path).lstrip("/"), path)
            if path.suffix == ".py":
                _add_compiled(archive, path)
    add_libraries(archive, [PYTHON, *(stdlib / "lib-dynload").glob("*.so")])


def _add_compiled(archive: CpioArchive, path: Path) -> None:
    """Take along what was compiled of it here: an emulated machine takes seconds for that. It is not compared with its source,
    whose time is another there.
    """
    compiled = Path(importlib.util.cache_from_source(str(path)))
    if compiled.exists():
        data = compiled.read_bytes()
        unchecked = (
            importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(path.read_bytes())
        )
        archive.file(str(compiled).lstrip("/"), unchecked + data[16:])


def add_libraries(archive: CpioArchive, binaries: list[Path]) -> None:
    """Add the shared libraries that these need, by the names that they are looked for."""
    found: set[Path] = set()
    for binary in binaries:
        said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}
    for library in sorted(found):
        archive.copy(str(library).lstrip("/"), library)


def add_folder(archive: CpioArchive, target: str, folder: Path) -> None:
    """Add the files of ``folder`` below ``target``."""
    for path in files(folder):
        archive.copy(f"{target}/{path.relative_to(folder)}", path)


def files(folder: Path) -> list[Path]:
    """All files of ``folder`` that are of use, sorted."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not LEFT_OUT.intersection(path.relative_to(folder).parts))
