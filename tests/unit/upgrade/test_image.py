# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's image is made from modules as Ansible brings them, in a zip archive, and runs when that has gone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade import image

ROOT = Path(image.__file__).parents[6]
MODULE_UTILS = Path(image.__file__).parents[1]


def test_image_made_from_a_zip_runs_without_it(tmp_path: Path) -> None:
    archive, engine = tmp_path / "module.zip", tmp_path / "engine.pyz"
    with zipfile.ZipFile(archive, "w") as target:
        for path in MODULE_UTILS.rglob("*.py"):
            target.write(path, str(path.relative_to(ROOT)))
        for package in ("", "/vmm", "/vmm/live_upgrade", "/vmm/live_upgrade/plugins"):
            target.writestr(f"ansible_collections{package}/__init__.py", "")
    package = "ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade"
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(archive)!r})\n"
        f"from {package} import engine, image\n"
        f"image.write_image(pathlib.Path({str(engine)!r}))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    archive.unlink()

    done = subprocess.run([sys.executable, "-I", engine], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "usage: engine.pyz run TRANSACTION_DIR\n")
