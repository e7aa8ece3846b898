# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight against real QEMUs: a 10.2 that is to become an 11.1, and every reason why it must not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import discovery
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory, VfioUse
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory

from .conftest import MACHINE, NEW_BUILD, OLD_BUILD, World, stage, write_manifest

NOBODY = 65534


def codes(verdict: Verdict) -> set[str]:
    """The codes of the refusals; a verdict agrees with them."""
    assert (verdict.verdict == "refuse") == bool(verdict.refusals)
    assert (verdict.mechanism is None) == bool(verdict.refusals)
    assert all(item.message and item.action for item in verdict.refusals + verdict.warnings)
    return {item.code for item in verdict.refusals}


def warning_codes(verdict: Verdict) -> set[str]:
    return {item.code for item in verdict.warnings}


def test_vm_that_can_go_and_come_back(world: World) -> None:
    qemu = world.vm()
    before = qemu.execute("query-migrate-parameters")

    verdict = world.judge()

    assert codes(verdict) == set()
    assert (verdict.verdict, verdict.mechanism, verdict.pid) == ("go", "vfork", qemu.pid)
    assert (verdict.old_build_id, verdict.new_build_id) == (OLD_BUILD, NEW_BUILD)
    assert (verdict.forward.compatible, verdict.backward.compatible) == (True, True)
    assert warning_codes(verdict) == {"old-build-not-staged"}
    # Nothing was touched.
    assert qemu.execute("query-migrate-parameters") == before
    assert qemu.execute("query-status")["status"] == "running"


@pytest.mark.parametrize(
    ("asked", "options", "capabilities", "mechanism", "why"),
    [
        ("auto", {}, ["cpr-vfork"], "vfork", "both builds have the mode cpr-vfork"),
        ("cpr-transfer", {}, ["cpr-vfork"], "cpr-transfer", "it was asked for"),
        ("auto", {}, [], "cpr-transfer", "the new build has no mode cpr-vfork"),
        ("auto", {"extra": ["-sandbox", "on,spawn=deny"]}, ["cpr-vfork"], "cpr-transfer", "spawn=deny forbids"),
    ],
    ids=["best", "asked-for", "new-build-lacks-it", "may-not-execute"],
)
def test_mechanism_is_chosen_with_its_reason(
    world: World, asked: str, options: dict[str, Any], capabilities: list[str], mechanism: str, why: str
) -> None:
    world.vm(**options)
    world.edit_manifest(capabilities=capabilities)

    verdict = world.judge(mechanism=asked)

    assert (verdict.verdict, verdict.mechanism) == ("go", mechanism), verdict.refusals
    assert why in verdict.mechanism_reason


def test_mechanism_that_was_asked_for_and_is_not_possible_is_a_refusal(world: World) -> None:
    world.vm(extra=["-sandbox", "on,spawn=deny"])
    world.edit_manifest(capabilities=[])

    verdict = world.judge(mechanism="vfork")

    assert codes(verdict) == {"vfork-unavailable", "sandbox-spawn"}
    assert verdict.mechanism is None


def test_staged_old_build_leaves_nothing_to_warn_of(world: World, qemu_old: Path) -> None:
    stage(world.state_dir / "builds" / OLD_BUILD, qemu_old, OLD_BUILD, [MACHINE])
    world.vm()

    verdict = world.judge()

    assert (verdict.verdict, verdict.warnings) == ("go", [])


def test_vm_that_runs_the_build_already(world: World, qemu_new: Path) -> None:
    binary = world.state_dir / "builds" / NEW_BUILD / "bin" / "qemu-system-x86_64"
    qemu = world.start("web1", binary=binary, like=qemu_new, machine=MACHINE, aux_ram_share=False)
    qemu.execute("stop")

    verdict = world.judge()

    assert (verdict.verdict, verdict.refusals, verdict.old_build_id) == ("already", [], NEW_BUILD)


@pytest.mark.parametrize(
    "options,expected",
    [
        pytest.param({"shared_ram": False}, {"ram-private"}, id="private-ram"),
        pytest.param({"aux_ram_share": False}, {"aux-ram-private"}, id="no-aux-ram-share"),
        pytest.param({"machine": "pc-i440fx-10.2"}, {"machine-missing"}, id="machine-type-missing"),
        pytest.param({"qmp": ()}, {"qmp-missing"}, id="no-monitor"),
        pytest.param({"extra": ["-incoming", "defer"]}, {"half-moved"}, id="incoming"),
        pytest.param({"extra": ["-S"]}, {"vm-not-running"}, id="never-started"),
        pytest.param({"extra": ["-vnc", "127.0.0.1:77"]}, {"option-refused"}, id="vnc"),
        pytest.param(
            {"extra": ["-vnc", "127.0.0.1:78"], "qmp": ()}, {"command-not-recreatable"}, id="vnc-without-monitor"
        ),
    ],
)
def test_refuses_a_vm_for_how_it_was_started(world: World, options: dict[str, Any], expected: set[str]) -> None:
    world.vm(**options)

    assert expected <= codes(world.judge())


def test_refuses_a_paused_vm(world: World) -> None:
    world.vm().execute("stop")

    assert codes(world.judge()) == {"vm-not-running"}


def test_refuses_a_vm_in_a_migration(world: World, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as nobody_reads:
        nobody_reads.bind(str(tmp_path / "target.sock"))
        nobody_reads.listen(1)
        vm = world.vm()
        vm.execute("migrate-set-parameters", {"max-bandwidth": 4096})  # or it would block in its last write
        vm.execute("migrate", {"uri": f"unix:{tmp_path}/target.sock"})

        assert codes(world.judge()) == {"migration-running"}


def test_wedged_vms_are_refused_and_the_others_judged(world: World) -> None:
    held, stopped, mute = world.vm("held"), world.vm("stopped"), world.vm("mute")
    world.vm("well")
    stopped.suspend()
    Path(mute.qmp_path).unlink()
    with QmpClient.connect(held.qmp_path):
        request = PreflightRequest(NEW_BUILD, str(world.state_dir), ["held", "stopped", "mute", "well"])
        verdicts = {judged.vm.name: judged.verdict for judged in judge_host(request)}

    assert {name: codes(verdict) for name, verdict in verdicts.items()} == {
        "held": {"qmp-busy"},
        "stopped": {"process-stopped"},
        "mute": {"qmp-dead"},
        "well": set(),
    }


def test_refuses_namesakes(world: World) -> None:
    world.vm("one", extra=["-name", "twin"])
    world.vm("two", extra=["-name", "twin"])

    judged = judge_host(PreflightRequest(NEW_BUILD, str(world.state_dir), ["twin"]))

    assert [codes(item.verdict) for item in judged] == [{"name-ambiguous"}, {"name-ambiguous"}]


def test_deleted_and_foreign_binary_describes_itself(world: World, qemu_old: Path, tmp_path: Path) -> None:
    binary = tmp_path / "qemu-system-x86_64"
    shutil.copy(qemu_old, binary)
    world.vm(binary=binary)
    binary.unlink()

    verdict = world.judge()

    assert codes(verdict) == set()
    assert verdict.forward.compatible is True
    assert {"binary-deleted", "old-build-not-staged"} <= warning_codes(verdict)


@pytest.mark.parametrize(
    "edit,code",
    [
        pytest.param(None, "vmstate-forward", id="new-does-not-know-what-it-would-get"),
        pytest.param({"version_id": 99}, "vmstate-backward", id="old-does-not-know-what-it-would-get"),
    ],
)
def test_refuses_incompatible_device_state(world: World, edit: dict[str, Any] | None, code: str) -> None:
    world.edit_dump("i8042", edit)
    world.vm()

    verdict = world.judge()

    assert codes(verdict) == {code}
    direction = verdict.forward if code == "vmstate-forward" else verdict.backward
    assert direction.compatible is False
    assert any("i8042" in finding for finding in direction.findings)


def test_no_way_back_can_be_accepted(world: World) -> None:
    world.edit_dump("i8042", {"version_id": 99})
    world.vm()

    verdict = world.judge(require_way_back=False)

    assert (verdict.verdict, verdict.backward.compatible) == ("go", False)
    assert "vmstate-backward" in warning_codes(verdict)


def test_devices_that_the_vm_has_not_do_not_matter(world: World) -> None:
    world.edit_dump("rtl8139", None)
    world.vm()

    assert world.judge().verdict == "go"


def test_device_state_that_cannot_be_compared(world: World) -> None:
    build = world.state_dir / "builds" / NEW_BUILD
    (build / "vmstate" / f"{MACHINE}.json").unlink()
    write_manifest(build, NEW_BUILD, [MACHINE])
    world.vm()

    assert codes(world.judge()) == {"vmstate-unknown"}
    tolerant = world.judge(require_vmstate_check=False)
    assert (tolerant.verdict, tolerant.forward.compatible) == ("go", None)
    assert "vmstate-unknown" in warning_codes(tolerant)


def test_refuses_an_image_that_is_gone_or_another(world: World) -> None:
    qemu = world.vm()
    qemu.disk_path.rename(qemu.directory / "moved.img")
    assert codes(world.judge()) == {"image-gone"}

    qemu.disk_path.write_bytes(b"\0" * 4096)
    assert codes(world.judge()) == {"image-replaced"}


def test_refuses_an_image_that_the_vms_user_may_no_longer_open(world: World, old_binary: Path) -> None:
    owner = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", 'exec "$@"', "sh"]
    # Below a directory that all may pass through, unlike those of pytest.
    with tempfile.TemporaryDirectory() as public:
        os.chown(public, NOBODY, NOBODY)
        shutil.copy(old_binary, f"{public}/qemu-system-x86_64")
        (Path(public) / "web1").mkdir()
        for path in Path(public).rglob("*"):
            os.chown(path, NOBODY, NOBODY)
        factory = QemuFactory(Path(public), Path(f"{public}/qemu-system-x86_64"), "tcg")
        try:
            qemu = factory("web1", like=world.old_original, machine=MACHINE, wrapper=owner, disk_owner=NOBODY)
            assert codes(world.judge()) == set()

            os.chown(qemu.disk_path, 0, 0)
            qemu.disk_path.chmod(0o600)

            assert codes(world.judge()) == {"image-unreadable"}
        finally:
            factory.close()


def test_warns_of_an_image_that_another_process_writes(world: World) -> None:
    qemu = world.vm()
    with subprocess.Popen(["sleep", "1000"], stdin=open(qemu.disk_path, "r+b")) as other:
        verdict = world.judge()
        other.kill()

    assert verdict.verdict == "go"
    message = next(item.message for item in verdict.warnings if item.code == "image-open-elsewhere")
    assert str(other.pid) in message


@pytest.mark.parametrize(
    "request_,code",
    [
        pytest.param({"memory_headroom_mib": 1 << 30}, "memory-low", id="memory"),
        pytest.param({"disk_headroom_mib": 1 << 40}, "disk-low", id="disk"),
    ],
)
def test_refuses_without_headroom(world: World, request_: dict[str, Any], code: str) -> None:
    world.vm()

    assert codes(world.judge(**request_)) == {code}


def test_process_that_could_not_have_a_twin(world: World) -> None:
    world.vm(wrapper=["unshare", "--user", "--map-root-user", "sh", "-c", 'exec "$@"', "sh"])

    assert codes(world.judge()) == {"other-namespace"}


def test_build_without_what_the_vm_has(world: World) -> None:
    """Stands for a build configured without a device: a script that lists all but that one."""
    build = world.state_dir / "builds" / NEW_BUILD
    binary = build / "bin" / "qemu-system-x86_64"
    real = binary.rename(binary.with_name("real"))
    binary.write_text(f'#!/bin/sh\n{real} "$@" | grep -v virtio-blk-pci\n')
    binary.chmod(0o755)
    write_manifest(build, NEW_BUILD, [MACHINE])
    world.vm()

    verdict = world.judge()

    assert codes(verdict) == {"device-missing"}
    assert "device virtio-blk-pci" in verdict.refusals[0].message


@pytest.mark.parametrize("build_id", ["qemu-11.1.1-ffffffffffffffff", "../../etc", ""])
def test_build_that_is_not_staged_is_an_error(world: World, build_id: str) -> None:
    with pytest.raises(LiveUpgradeError):
        judge_host(PreflightRequest(build_id, str(world.state_dir)))


def test_damaged_build_is_an_error(world: World) -> None:
    world.vm()
    dump = world.state_dir / "builds" / NEW_BUILD / "vmstate" / f"{MACHINE}.json"
    dump.write_text(dump.read_text() + " ")

    with pytest.raises(LiveUpgradeError, match="damaged: vmstate/pc-q35-10.2.json was changed"):
        world.judge()


def test_build_that_does_not_run_here_is_an_error(world: World) -> None:
    build = world.state_dir / "builds" / NEW_BUILD
    (build / "bin" / "qemu-system-x86_64").write_text("#!/bin/sh\necho cannot open shared object file >&2; exit 127\n")
    write_manifest(build, NEW_BUILD, [MACHINE])
    world.vm()

    with pytest.raises(LiveUpgradeError, match="does not run on this host: cannot open shared object file"):
        world.judge()


def test_unknown_vm_is_an_error_that_names_those_that_run(world: World) -> None:
    world.vm()

    with pytest.raises(LiveUpgradeError, match="no such VM runs on this host: nope; running: .*web1"):
        world.judge("nope")


def test_verdict_is_json(world: World) -> None:
    world.vm()

    verdict = json.loads(json.dumps(world.judge().to_dict()))

    assert set(verdict) >= {
        "name",
        "pid",
        "verdict",
        "mechanism",
        "mechanism_reason",
        "refusals",
        "warnings",
        "forward",
    }


def test_refuses_vfio_devices_whose_mappings_could_not_follow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen of a VM with such devices, on a machine that has none."""
    world.vm()
    monkeypatch.setattr(discovery, "vfio_use", lambda _pid, _links: VfioUse(["12"], [], False))
    monkeypatch.setattr(discovery, "locked_memory", lambda _pid: LockedMemory(2000, 0, 1000, 1000, False))

    assert {"vfio-kernel", "memlock-low"} <= codes(world.judge())
