# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's own image: the modules loaded here, packed so that they outlive the module call that brought them.

Ansible deletes a module's archive when the call ends; the engine runs on. PRIVATE to the collection.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade import engine

_ROOT = "ansible_collections.vmm.live_upgrade.plugins.module_utils"
_MAIN = f"""import sys
from {engine.__name__} import main

sys.exit(main(sys.argv))
"""


def write_image(path: Path) -> None:
    """Write the collection's modules that this process has imported, with an entry point, as a zip archive.

    It is on the disk before this returns: an engine that the host's reboot interrupts is run again from it.
    """
    with open(path, "xb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__main__.py", _MAIN)
            for package in _parents(_ROOT):
                archive.writestr(f"{package.replace('.', '/')}/__init__.py", "")
            for name, source in _own_sources().items():
                archive.writestr(name, source)
        stream.flush()
        os.fsync(stream.fileno())


def _own_sources() -> dict[str, str]:
    sources = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith(f"{_ROOT}."):
            continue
        spec = module.__spec__
        # Not every loader that tells the source says so by its class: zipimport's does not.
        get_source = getattr(spec.loader, "get_source", None) if spec else None
        if spec is None or get_source is None:
            raise LiveUpgradeError(f"module {name} cannot tell its source, so no engine can be made of it")
        is_package = spec.submodule_search_locations is not None
        sources[f"{name.replace('.', '/')}{'/__init__' if is_package else ''}.py"] = get_source(name) or ""
    return sources


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
