# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bill of materials for a KVM artifact: the core with its patches, and the kvm_thin beside it. PRIVATE to the collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.sbom import pedigree, sha256_hash, write_bom
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import THIN_FILE, KmodManifest

_LICENSES = [{"license": {"id": "GPL-2.0-only"}}]


def write_sbom(path: Path, manifest: KmodManifest, prefix: Path) -> None:
    """Write the SBOM of the build whose modules lie in ``prefix``."""
    core = {
        "type": "device-driver",
        "bom-ref": manifest.build_id,
        "name": manifest.module,
        "version": manifest.version,
        "licenses": _LICENSES,
        "cpe": f"cpe:2.3:o:linux:linux_kernel:{manifest.version}:*:*:*:*:*:*:*",
        "purl": f"pkg:generic/linux@{manifest.version}?checksum=sha256:{manifest.source['sha256']}",
        "hashes": [sha256_hash(prefix / manifest.core_file)],
        "pedigree": pedigree(manifest.patches),
        "properties": [
            {"name": f"vmm.live_upgrade:{name}", "value": value}
            for name, value in {
                "build_id": manifest.build_id,
                "kernel": manifest.release,
                "vermagic": manifest.vermagic,
                "thin_abi": str(manifest.thin_abi),
                "compiler": manifest.compiler,
                "signed_by": manifest.signed_by,
            }.items()
        ],
    }
    sources = [_source(item) for item in manifest.overlay + manifest.thin]
    write_bom(path, manifest.build_id, core, [_thin(manifest, prefix), *sources])


def _thin(manifest: KmodManifest, prefix: Path) -> dict[str, Any]:
    return {
        "type": "device-driver",
        "bom-ref": f"kvm_thin-{manifest.thin_build}",
        "name": "kvm_thin",
        "version": manifest.thin_build,
        "licenses": _LICENSES,
        "hashes": [sha256_hash(prefix / THIN_FILE)],
    }


def _source(item: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file/{item['name']}/{item['sha256']}",
        "name": item["name"],
        "hashes": [{"alg": "SHA-256", "content": item["sha256"]}],
    }
