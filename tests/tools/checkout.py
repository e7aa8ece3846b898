# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are in this checkout, and the environment that tools of it run in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
VENV = ROOT / ".venv"
VENV_NEXT = ROOT / ".venv-next"
TREE = BUILD / "tree"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmm-live-upgrade"
ARTIFACTS = CACHE / "artifacts"
STOCK_ARTIFACTS = CACHE / "stock-artifacts"
LAB = ROOT / "tests" / "lab" / "lab.py"

# The QEMU that VMs start on, and the one they are moved to, which also emulates the lab's hosts.
OLD_SERIES = "10.2"
NEW_SERIES = "11.1"


def environment(**more: str) -> dict[str, str]:
    """The environment for children: tools of the pinned environment first, Ansible as it is in ansible.cfg here.

    Ansible's home is in the checkout, because ansible-lint and Molecule install the collection there, and would find it
    there again when it has become old. Only its ssh sockets stay out: their paths must be short.
    """
    values = dict(os.environ)
    values["PATH"] = f"{VENV / 'bin'}:{values['PATH']}"
    values["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    values["ANSIBLE_COLLECTIONS_PATH"] = str(TREE)
    values["ANSIBLE_HOME"] = str(BUILD / "ansible-home")
    values["ANSIBLE_SSH_CONTROL_PATH_DIR"] = str(Path.home() / ".ansible" / "cp")
    # No lab is up when builds are made; localhost is there all the same.
    values["ANSIBLE_LOCALHOST_WARNING"] = values["ANSIBLE_INVENTORY_UNPARSED_WARNING"] = "false"
    values["PYTHONUNBUFFERED"] = "1"
    values["PYTHONDONTWRITEBYTECODE"] = "1"
    values.update(more)
    return values
