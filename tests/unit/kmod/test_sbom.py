# SPDX-License-Identifier: GPL-3.0-or-later
"""The bill of materials names what the artifact has, with the digests that the manifest lists."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.sbom import write_sbom
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import verify_kvm_artifact
from ansible_collections.vmm.live_upgrade.tests.unit.kmod.conftest import THIN_BUILD, Host, MakeArtifact, build_id


def test_names_core_patches_thin_and_sources(host: Host, make_kvm_artifact: MakeArtifact, tmp_path: Path) -> None:
    artifact = make_kvm_artifact(
        3, patches=[{"name": "one", "sha256": "a" * 64}], thin=[{"name": "core.c", "sha256": "b" * 64}]
    )
    manifest = verify_kvm_artifact(artifact, None, None)
    write_sbom(tmp_path / "sbom.json", manifest, host.store.stage(artifact, manifest).path)
    bom = json.loads((tmp_path / "sbom.json").read_text())

    core = bom["metadata"]["component"]
    assert (core["bom-ref"], core["version"]) == (build_id(3), "6.12.1")
    assert core["hashes"][0]["content"] == manifest.files[manifest.core_file]
    assert core["pedigree"]["patches"][0]["diff"]["url"] == f"urn:sha256:{'a' * 64}"
    contents = {item["name"]: item["hashes"][0]["content"] for item in bom["components"]}
    assert contents == {"kvm_thin": manifest.files["kvm_thin.ko"], "core.c": "b" * 64}
    assert bom["dependencies"][0]["dependsOn"][0] == f"kvm_thin-{THIN_BUILD}"
