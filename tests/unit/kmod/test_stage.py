# SPDX-License-Identifier: GPL-3.0-or-later
"""A KVM build is staged for the kernel that can load it, whole or not at all."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.fitness import refusals
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import KmodManifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import verify_kvm_artifact
from ansible_collections.vmm.live_upgrade.tests.unit.kmod.conftest import (
    RELEASE,
    VERMAGIC,
    Host,
    MakeArtifact,
    build_id,
    module_bytes,
    name,
)

SIGNATURE = b"sig~Module signature appended~\n"


def _stage(host: Host, artifact: Path) -> Path:
    return host.store.stage(artifact, verify_kvm_artifact(artifact, None, None)).path


def test_lies_in_the_folder_of_its_kernel(host: Host, make_kvm_artifact: MakeArtifact) -> None:
    path = _stage(host, make_kvm_artifact(3))
    assert path == host.root / "state/kvm" / RELEASE / build_id(3)
    assert [build.manifest.build_id for build in host.store.list()] == [build_id(1), build_id(2), build_id(3)]


@pytest.mark.parametrize(
    ("artifact", "why"),
    [
        ({"kind": "qemu"}, "of kind 'qemu', not kvm"),
        ({"build_id": "latest"}, "'latest' is not a build id"),
        ({"build_id": build_id(4)}, f"is not that of core {name(3)} of Linux 6.12.1"),
        ({"thin_abi": "1"}, "thin_abi of the manifest is not of type int"),
        ({"thin_abi": True}, "thin_abi of the manifest is not of type int"),
        ({"patches": [{"name": 1}]}, "patches of the manifest is not of type list"),
        ({"files": {"kvm_thin.ko": "0" * 64}}, f"does not list kvm_core_{name(3)}.ko"),
        ({"architecture": "s390x"}, "it is for s390x"),
        ({"core": {"vermagic": "6.1.0 SMP "}}, "vermagic of kvm_core_.* is '6.1.0 SMP', the manifest says"),
        ({"core": {"version": name(4)}}, "version of kvm_core_"),
        ({"core": {"kvm_thin_abi": 2}}, "kvm_thin_abi of kvm_core_"),
        ({"signed_by": "c" * 64}, "signature of kvm_thin.ko is False, the manifest says True"),
        ({"tail": SIGNATURE}, "signature of kvm_thin.ko is True, the manifest says False"),
    ],
)
def test_build_that_is_not_what_it_says_leaves_nothing(
    host: Host, make_kvm_artifact: MakeArtifact, artifact: dict[str, object], why: str
) -> None:
    with pytest.raises(LiveUpgradeError, match=why):
        _stage(host, make_kvm_artifact(3, **artifact))
    assert len([path for path in host.store.folder.iterdir() if path.name != ".lock"]) == 2


def test_same_core_with_another_thin_is_not_taken_for_the_one_that_is_there(
    host: Host, make_kvm_artifact: MakeArtifact
) -> None:
    manifest = verify_kvm_artifact(make_kvm_artifact(1), None, None)
    assert host.store.has(manifest)
    with pytest.raises(LiveUpgradeError, match=r"is staged with kvm_thin ffffffffffffffff, .*state=absent"):
        _stage(host, make_kvm_artifact(1, thin_build="e" * 16))


class TestFitness:
    """Whether this host could load a build."""

    @pytest.fixture
    def judge(self, host: Host, make_kvm_artifact: MakeArtifact) -> object:
        def judge(**manifest: object) -> str:
            built: KmodManifest = verify_kvm_artifact(make_kvm_artifact(3, **manifest), None, None)
            return "; ".join(refusals(built, host.kernel, host.manager.state()))

        return judge

    def test_build_for_this_kernel_fits(self, judge) -> None:
        assert judge() == ""

    def test_other_release(self, judge) -> None:
        assert "it is for kernel 6.12.2-amd64, here runs 6.12.1-amd64" in judge(release="6.12.2-amd64")

    def test_other_vermagic(self, judge) -> None:
        assert "the kernel's modules have" in judge(vermagic=VERMAGIC.replace("preempt ", ""))

    def test_vermagic_is_read_from_a_packed_module(self, judge, host: Host) -> None:
        modules = host.root / "lib/modules" / RELEASE
        (modules / "modules.dep").write_text("kernel/three.ko.xz:\n")
        (modules / "kernel/three.ko.xz").write_bytes(lzma.compress(module_bytes(vermagic="6.12.1-amd64 UP ")))
        assert "'6.12.1-amd64 UP'" in judge()

    @pytest.mark.parametrize(
        ("path", "text", "why"),
        [
            ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "locked down (integrity)"),
            ("sys/module/module/parameters/sig_enforce", "Y\n", "module.sig_enforce"),
            ("sys/module/module/parameters/sig_enforce", "1\n", "module.sig_enforce"),
        ],
    )
    def test_unsigned_where_signatures_are_wanted(self, judge, host: Host, path: str, text: str, why: str) -> None:
        (host.root / path).parent.mkdir(parents=True)
        (host.root / path).write_text(text)
        assert why in judge()
        assert judge(signed_by="c" * 64) == ""

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
            ("sys/module/module/parameters/sig_enforce", "N\n"),
        ],
    )
    def test_unsigned_where_they_are_not(self, judge, host: Host, path: str, text: str) -> None:
        (host.root / path).parent.mkdir(parents=True)
        (host.root / path).write_text(text)
        assert judge() == ""

    def test_newer_thin_than_the_one_that_runs(self, judge, host: Host) -> None:
        assert judge(thin_abi=2) == ""
        host.present(1)
        assert "it needs kvm_thin ABI 2, the one that runs serves up to 1" in judge(thin_abi=2)
