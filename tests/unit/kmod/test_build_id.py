# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes another build of a core, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.build import (
    KmodBuilder,
    KmodPlan,
    KmodSpec,
    series_of,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kbuild import Kbuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.signing import Signing

Plan = Callable[..., KmodPlan]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, text in {
        "linux-source-6.12.tar.xz": "source",
        "patches/series": "0001-one.patch\n",
        "patches/0001-one.patch": "patch",
        "overlay/files": "core.c\n",
        "overlay/core.c": "code",
        "thin/kvm_thin.h": "#define KVM_THIN_ABI\t\t3\n",
        "thin/uret.c": "code",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def plan(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(Kbuild, "check", lambda self: None)
    monkeypatch.setattr(Kbuild, "identity", lambda self: {"release": self.release, "compiler": "gcc 14"})
    spec = KmodSpec(
        series="6.12",
        release="6.12.1-amd64",
        source=sources / "linux-source-6.12.tar.xz",
        patches=sources / "patches",
        overlay=sources / "overlay",
        thin=sources / "thin",
        jobs=1,
    )
    builder = KmodBuilder(sources, sources / "work", sources / "dest", print)
    return lambda **changes: builder.plan(replace(spec, **changes))


@pytest.mark.parametrize(
    "changed", ["linux-source-6.12.tar.xz", "patches/0001-one.patch", "overlay/core.c", "thin/kvm_thin.h"]
)
def test_each_input_makes_another_core(plan: Plan, sources: Path, changed: str) -> None:
    before = plan()
    (sources / changed).write_text((sources / changed).read_text() + "// more\n")
    assert plan().name != before.name


def test_kernel_and_label_make_another_core(plan: Plan) -> None:
    assert len({plan().name, plan(release="6.12.2-amd64").name, plan(label="b").name}) == 3


def test_fixes_make_another_core_and_come_last_under_their_own_names(plan: Plan, sources: Path) -> None:
    (sources / "fixes").mkdir()
    (sources / "fixes/series").write_text("0001-one.patch\n")
    (sources / "fixes/0001-one.patch").write_text("fix")
    fixed = plan(fixes=sources / "fixes")
    assert [patch.name for patch in fixed.patches] == ["0001-one.patch", "fixes/0001-one.patch"]
    assert fixed.name != plan().name


def test_a_folder_without_fixes_is_refused(plan: Plan, sources: Path) -> None:
    (sources / "fixes").mkdir()
    with pytest.raises(LiveUpgradeError, match="names no fix"):
        plan(fixes=sources / "fixes")


def test_the_inside_of_thin_makes_another_thin_and_the_same_core(plan: Plan, sources: Path) -> None:
    before = plan()
    (sources / "thin" / "uret.c").write_text("other code")
    after = plan()
    assert (after.name, after.thin_build != before.thin_build) == (before.name, True)


def test_the_abi_is_the_headers(plan: Plan) -> None:
    assert plan().thin_abi == 3


def test_a_missing_source_names_its_package(plan: Plan, sources: Path) -> None:
    with pytest.raises(LiveUpgradeError, match=r"install linux-source-6\.12"):
        plan(source=sources / "nothing.tar.xz")


class TestSigning:
    """What is signed is another build, and the key is one that nobody else has."""

    @pytest.fixture
    def signing(self, sources: Path, monkeypatch: pytest.MonkeyPatch) -> Signing:
        sign_file = sources / "usr/src/linux-headers-6.12.1-amd64/scripts/sign-file"
        sign_file.parent.mkdir(parents=True)
        sign_file.touch()
        signing = Signing(sources / "key.pem", sources / "key.crt")
        signing.key.write_text("private")
        signing.key.chmod(0o600)
        signing.certificate.write_text("certificate")
        return signing

    def test_signed_is_another_core_and_another_thin(self, plan: Plan, signing: Signing) -> None:
        plain, signed = plan(), plan(signing=signing)
        assert plain.name != signed.name
        assert plain.thin_build != signed.thin_build

    def test_it_is_known_by_the_certificate_not_by_the_key(self, plan: Plan, signing: Signing) -> None:
        before = plan(signing=signing).name
        signing.key.write_text("the same with another line break")
        assert plan(signing=signing).name == before
        signing.certificate.write_text("another")
        assert plan(signing=signing).name != before

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_key_that_others_have_is_refused(self, plan: Plan, signing: Signing, mode: int) -> None:
        signing.key.chmod(mode)
        with pytest.raises(LiveUpgradeError, match="others can read or change it"):
            plan(signing=signing)

    def test_missing_key_is_named(self, plan: Plan, signing: Signing) -> None:
        signing.key.unlink()
        with pytest.raises(LiveUpgradeError, match=r"there is no key .*key\.pem"):
            plan(signing=signing)

    def test_key_outside_of_the_root_is_refused(
        self, plan: Plan, signing: Signing, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "key.pem"
        signing.key.rename(elsewhere)
        with pytest.raises(LiveUpgradeError, match="does not lie in"):
            plan(signing=replace(signing, key=elsewhere))


@pytest.mark.parametrize(
    ("release", "series"),
    [("6.12.1-amd64", "6.12"), ("6.1.0-56-amd64", "6.1"), ("6.12.118+deb13-cloud-amd64", "6.12"), ("7.2-rc1", "7.2")],
)
def test_series_of_a_kernel(release: str, series: str) -> None:
    assert series_of(release) == series


@pytest.mark.parametrize("release", ["", "6", "linux-6.1", "6.x"])
def test_what_is_no_kernel_is_refused(release: str) -> None:
    with pytest.raises(LiveUpgradeError, match="is no release of a kernel"):
        series_of(release)


@pytest.mark.parametrize("release", ["6.1.0-56-amd64", "6.13.1-amd64"])
def test_kvm_of_one_series_does_not_go_into_a_kernel_of_another(plan: Plan, release: str) -> None:
    with pytest.raises(LiveUpgradeError, match=f"{release} is not one of Linux 6.12"):
        plan(release=release)
