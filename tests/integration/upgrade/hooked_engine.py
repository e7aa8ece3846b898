# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines that fail as a test wants it: a few lines run before the image of a transaction's engine does its work."""

from __future__ import annotations

import zipfile
from pathlib import Path


def hook_engine(transaction: Path, hook: str) -> None:
    """Have the engine of ``transaction`` run the Python ``hook`` first; an earlier one is forgotten."""
    image = transaction / "engine.pyz"
    pristine = transaction / "engine.pristine"
    if not pristine.exists():
        pristine.write_bytes(image.read_bytes())
    with zipfile.ZipFile(pristine) as source, zipfile.ZipFile(image, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, hook.encode() + text if name == "__main__.py" else text)


def make_engine_die_at(transaction: Path, step: str | None) -> None:
    """Give it a journal that kills engine and worker once ``step`` is written; None: one that does not."""
    hook_engine(
        transaction,
        "import os, signal\n"
        "from ansible_collections.vmm.live_upgrade.plugins.module_utils import journal\n"
        "write = journal.Journal.write\n"
        "def dying(self, at, vm=None, **facts):\n"
        "    write(self, at, vm, **facts)\n"
        f"    if at == {step!r}:\n"
        "        os.killpg(0, signal.SIGKILL)\n"
        "journal.Journal.write = dying\n",
    )
