# SPDX-License-Identifier: GPL-3.0-or-later
"""A core is loaded, chosen and unloaded as it should be, or the host is left as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.nodes import RULE
from ansible_collections.vmm.live_upgrade.tests.unit.kmod.conftest import RELEASE, Host, build_id, name

ONE, TWO = name(1), name(2)
ROOT = Path(__file__).resolve().parents[3]


def test_first_core_takes_the_place_of_the_idle_stock_kvm(host: Host) -> None:
    host.present(1)
    assert host.kernel.said == [
        "rmmod kvm_amd",
        "rmmod kvm",
        "insmod kvm_thin",
        "modprobe irqbypass",
        f"insmod kvm_core_{ONE}",
    ]
    assert host.manager.picture().default == ONE


def test_second_core_goes_beside_the_first_and_does_not_become_the_default(host: Host) -> None:
    host.present(1)
    assert host.present(2) == [f"load kvm_core_{TWO}", f"have /dev/kvm-{TWO} for the group kvm"]
    assert host.manager.picture().default == ONE


def test_what_is_there_is_left_alone(host: Host) -> None:
    host.present(1, default=True, persist=True)
    assert host.present(1, default=True, persist=True) == []


def test_default_is_loaded_and_chosen(host: Host) -> None:
    host.present(1)
    assert host.present(2, default=True)[-1] == f"make core {TWO} the default"
    assert host.manager.picture().default == TWO


def test_plan_changes_nothing_and_tells_what_comes_of_it(host: Host) -> None:
    before = host.manager.picture()
    changes = host.manager.plan_present(build_id(2), default=True, persist=True)
    assert host.manager.picture() == before
    predicted = before.after(changes)
    host.manager.apply(changes)
    after = host.manager.picture()
    assert (sorted(predicted.modules), predicted.default, predicted.boot) == (
        sorted(after.modules),
        after.default,
        after.boot,
    )


@pytest.mark.parametrize("link", ["/dev/kvm", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"])
def test_stock_kvm_in_use_is_left_alone_and_its_vm_named(host: Host, link: str) -> None:
    host.kernel.process(7, link, uses="kvm_amd")
    with pytest.raises(LiveUpgradeError, match=r"in use by VM db \(process 7\).*Nothing was changed"):
        host.present(1)
    assert host.kernel.said == []


def test_stock_kvm_held_by_no_process_is_left_alone(host: Host) -> None:
    (host.root / "sys/module/kvm_amd/refcnt").write_text("1\n")
    with pytest.raises(LiveUpgradeError, match="in use by the kernel itself"):
        host.present(1)


def test_stock_kvm_with_a_stranger_on_it_is_left_alone(host: Host) -> None:
    (host.root / "sys/module/kvm/holders/kvmgt").mkdir()
    with pytest.raises(LiveUpgradeError, match="in use by module kvmgt"):
        host.present(1)


def test_kvm_that_is_built_in_is_refused(host: Host) -> None:
    (host.root / "sys/module/kvm/initstate").unlink()
    with pytest.raises(LiveUpgradeError, match="built into this kernel"):
        host.present(1)


@pytest.mark.parametrize("failing", ["kvm_thin", f"kvm_core_{ONE}"])
def test_failed_load_brings_the_stock_kvm_back(host: Host, failing: str) -> None:
    before = host.manager.picture()
    host.kernel.fails = {failing}
    with pytest.raises(LiveUpgradeError, match=r"Operation not supported\. KVM is as it was before"):
        host.present(1)
    assert sorted(host.manager.picture().modules) == sorted(before.modules)


def test_core_without_its_node_is_taken_back_and_the_other_stays(host: Host) -> None:
    host.present(1)
    before = host.manager.picture()
    host.nodes.bad = {f"/dev/kvm-{TWO}"}
    with pytest.raises(LiveUpgradeError, match="is not there. KVM is as it was"):
        host.present(2, default=True)
    assert host.manager.picture() == before


def test_roll_back_that_fails_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: str) -> None:
        raise LiveUpgradeError(f"modprobe {module} failed")

    host.kernel.fails = {"kvm_thin"}
    monkeypatch.setattr(host.kernel, "probe", refuse)
    with pytest.raises(LiveUpgradeError, match="could not all be taken back: unload kvm: modprobe kvm failed"):
        host.present(1)


def test_changed_module_is_not_loaded(host: Host) -> None:
    with open(host.store.get(build_id(1)).core, "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(LiveUpgradeError, match="is not the file that the manifest lists"):
        host.present(1)
    assert host.kernel.said == []


def test_build_that_is_not_staged_is_refused(host: Host) -> None:
    with pytest.raises(LiveUpgradeError, match=f"{build_id(3)} is not staged .*{build_id(1)}, {build_id(2)}"):
        host.present(3)


def test_last_core_takes_thin_along(host: Host) -> None:
    host.present(1)
    assert host.absent(1) == [f"unload kvm_core_{ONE}", "unload kvm_thin"]
    assert host.manager.picture().modules == ()
    assert host.absent(1) == []


@pytest.mark.parametrize("failing", ["thin", "boot"])
def test_core_that_cannot_go_with_all_is_loaded_again(
    host: Host, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.present(1, persist=True)
    before = host.manager.picture()
    if failing == "thin":
        unload = host.kernel.unload
        monkeypatch.setattr(host.kernel, "unload", lambda name: _refuse() if name == "kvm_thin" else unload(name))
    else:
        monkeypatch.setattr(host.boot, "set", lambda builds: _refuse())
    with pytest.raises(LiveUpgradeError, match=r"no\. KVM is as it was before"):
        host.absent(1)
    assert sorted(host.manager.picture().modules) == sorted(before.modules)


def test_default_stays_while_there_are_others(host: Host) -> None:
    host.present(1)
    host.present(2)
    with pytest.raises(LiveUpgradeError, match=rf"state=default\), one of {build_id(2)}"):
        host.absent(1)
    host.present(2, default=True)
    assert host.absent(1) == [f"unload kvm_core_{ONE}"]


def test_core_in_use_stays_and_its_vms_are_named(host: Host) -> None:
    host.present(1)
    host.kernel.process(7, f"/dev/kvm-{ONE}", uses=f"kvm_core_{ONE}")
    host.kernel.process(9, "/dev/kvm", uses=f"kvm_core_{ONE}")
    with pytest.raises(LiveUpgradeError, match=r"after 0 s by VM db \(process 7\), process 9, and stays loaded"):
        host.absent(1)
    assert host.manager.picture().default == ONE


def test_last_user_is_waited_for(host: Host) -> None:
    host.present(1)
    host.kernel.process(7, f"/dev/kvm-{ONE}", uses=f"kvm_core_{ONE}")
    leaving = threading.Timer(0.3, lambda: host.kernel.end(7, f"kvm_core_{ONE}"))
    leaving.start()
    host.absent(1, deadline_s=60)
    leaving.join()
    assert host.manager.picture().modules == ()


def test_users_are_told_apart_by_the_core_that_made_their_vm(host: Host) -> None:
    host.present(1)
    host.present(2)
    # opened /dev/kvm when core 2 was the default
    host.kernel.process(8, "/dev/kvm", "anon_inode:kvm-vm")
    (host.root / f"sys/kernel/debug/kvm-{TWO}/8-11").mkdir(parents=True)
    host.kernel.process(7, f"/dev/kvm-{ONE} (deleted)")
    host.kernel.process(9, "/dev/null", "/dev/kvm-not-a-core")
    users = {core.name: [user.vm for user in core.users] for core in host.manager.state().cores}
    assert users == {ONE: ["db"], TWO: ["web"]}


def test_facts_of_a_core(host: Host) -> None:
    host.present(1)
    facts = host.manager.state().to_dict()
    assert facts["thin"] == {"loaded": True, "abi": 1, "version": "f" * 16}
    assert facts["stock"] == {"loaded": False, "users": []}
    assert facts["cores"] == [
        {
            "name": ONE,
            "build_id": build_id(1),
            "version": "6.12.1",
            "node": f"/dev/kvm-{ONE}",
            "default": True,
            "vms": 0,
            "users": [],
            "staged": True,
        }
    ]


class TestBoot:
    """What is loaded when the host comes up."""

    def test_present_is_added_and_default_comes_first(self, host: Host) -> None:
        host.present(1, persist=True)
        host.present(2, persist=True)
        assert host.boot.builds() == [build_id(1), build_id(2)]
        host.present(2, default=True, persist=True)
        assert host.boot.builds() == [build_id(2), build_id(1)]

    def test_without_persist_it_is_left_as_it_is(self, host: Host) -> None:
        host.present(1, persist=True)
        host.present(2, default=True)
        assert host.boot.builds() == [build_id(1)]

    def test_last_one_gone_leaves_nothing_behind(self, host: Host) -> None:
        host.present(1)
        before = _files(host.root / "etc")
        host.present(1, persist=True)
        assert len(_files(host.root / "etc")) == 5
        host.absent(1)
        assert _files(host.root / "etc") == before
        assert not (host.root / "usr/local/lib/vmm-live-upgrade/load-kvm-cores").exists()

    def test_absent_with_persist_is_loaded_again_at_boot(self, host: Host) -> None:
        host.present(1, persist=True)
        host.absent(1, persist=True)
        assert host.boot.builds() == [build_id(1)]

    def test_choice_of_another_kernel_keeps_the_unit(self, host: Host) -> None:
        other = host.root / "etc/vmm-live-upgrade/kvm-cores/6.13.0-amd64"
        host.present(1, persist=True)
        other.write_text("thin /x\n")
        host.absent(1)
        assert (host.root / "etc/systemd/system/vmm-kvm-cores.service").exists()

    def test_file_that_was_changed_is_mended(self, host: Host) -> None:
        host.present(1, persist=True)
        (host.root / "etc/modprobe.d/vmm-kvm-cores.conf").write_text("")
        assert host.present(1, persist=True) == [f"load at boot: {build_id(1)}"]
        assert host.present(1, persist=True) == []

    def test_host_without_systemd_is_refused_before_anything_is_loaded(self, host: Host) -> None:
        (host.root / "run/systemd/system").rmdir()
        with pytest.raises(LiveUpgradeError, match="leave persist out"):
            host.present(1, persist=True)
        assert host.kernel.said == []

    def test_what_cannot_be_written_is_taken_back_with_the_modules(self, host: Host) -> None:
        before = host.manager.picture()
        (host.root / "etc").mkdir()
        (host.root / "etc/modprobe.d").write_text("a file where a folder should be")
        with pytest.raises(LiveUpgradeError, match="cannot be written: Not a directory.*KVM is as it was before"):
            host.present(1, persist=True)
        assert _files(host.root / "etc") == ["modprobe.d"]
        assert sorted(host.manager.picture().modules) == sorted(before.modules)

    def test_next_boot_is_chosen_while_vms_hold_the_stock_kvm(self, host: Host) -> None:
        host.kernel.process(7, "/dev/kvm", uses="kvm_amd")
        host.manager.apply(host.manager.plan_boot(build_id(1), default=False))
        assert host.boot.builds() == [build_id(1)]
        assert host.manager.plan_boot(build_id(1), default=True) == []
        assert host.kernel.said == []

    def test_choice_names_files_of_the_store(self, host: Host) -> None:
        host.present(1, persist=True)
        folder = host.store.folder / build_id(1)
        choice = (host.root / "etc/vmm-live-upgrade/kvm-cores" / RELEASE).read_text()
        assert choice == f"thin {folder}/kvm_thin.ko\ncore {folder}/kvm_core_{ONE}.ko\n"


def test_rule_is_the_one_of_the_sources() -> None:
    assert (ROOT / "kmod/udev/60-kvm-cores.rules").read_text() == RULE


def _refuse() -> None:
    raise LiveUpgradeError("no")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
