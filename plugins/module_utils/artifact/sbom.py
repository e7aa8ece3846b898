# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CycloneDX bill of materials for an artifact. PRIVATE to the collection.

Source: CycloneDX 1.5 JSON (ECMA-424).
"""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.manifest import Manifest


def write_sbom(path: Path, manifest: Manifest, prefix: Path) -> None:
    """Write the SBOM of the build in ``prefix``: QEMU with its source and patches, firmware, shared libraries."""
    firmware = sorted(item for item in (prefix / "share" / "qemu").iterdir() if item.is_file())
    qemu = {
        "type": "application",
        "bom-ref": manifest.build_id,
        "name": "qemu",
        "version": manifest.version,
        "licenses": [{"license": {"id": "GPL-2.0-or-later"}}],
        "cpe": f"cpe:2.3:a:qemu:qemu:{manifest.version}:*:*:*:*:*:*:*",
        "purl": f"pkg:generic/qemu@{manifest.version}?checksum=sha256:{manifest.source['sha256']}",
        "hashes": [sha256_hash(prefix / "bin" / "qemu-system-x86_64")],
        "pedigree": pedigree(manifest.patches),
        "properties": [
            {"name": "vmm.live_upgrade:build_id", "value": manifest.build_id},
            {"name": "vmm.live_upgrade:configure", "value": " ".join(manifest.configure)},
            {"name": "vmm.live_upgrade:compiler", "value": manifest.compiler},
        ],
    }
    write_bom(
        path,
        manifest.build_id,
        qemu,
        [_firmware(item) for item in firmware] + [_library(name) for name in manifest.libraries],
    )


def write_bom(path: Path, build_id: str, component: dict[str, Any], components: list[dict[str, Any]]) -> None:
    """Write the SBOM of ``component``, which is made of ``components``, each with a ``bom-ref``."""
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, build_id)}",
        "version": 1,
        "metadata": {"component": component},
        "components": components,
        "dependencies": [
            {"ref": component["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]},
        ],
    }
    path.write_text(json.dumps(bom, indent=1, sort_keys=True) + "\n")


def sha256_hash(path: Path) -> dict[str, str]:
    """The digest of a file as CycloneDX writes it."""
    return {"alg": "SHA-256", "content": sha256_of(path)}


def pedigree(patches: list[dict[str, str]]) -> dict[str, Any]:
    """How the source differs from its author's."""
    return {
        "patches": [{"type": "unofficial", "diff": {"url": f"urn:sha256:{item['sha256']}"}} for item in patches],
    }


def _firmware(path: Path) -> dict[str, Any]:
    return {
        "type": "firmware",
        "bom-ref": f"firmware/{path.name}",
        "name": path.name,
        "hashes": [sha256_hash(path)],
    }


def _library(soname: str) -> dict[str, Any]:
    """Describe a shared library, with the Debian package and version that provides it here, where dpkg knows."""
    component: dict[str, Any] = {"type": "library", "bom-ref": f"library/{soname}", "name": soname}
    owner = _dpkg("dpkg-query", "--search", f"*/{soname}").partition(":")[0]
    version = _dpkg("dpkg-query", "--show", "--showformat=${Version}", owner) if owner else ""
    if version:
        component["version"] = version
        component["purl"] = f"pkg:deb/debian/{owner}@{version}"
    return component


def _dpkg(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().partition("\n")[0]
    except FileNotFoundError:
        return ""  # not a Debian machine
