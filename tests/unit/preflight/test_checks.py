# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The codes and their documentation, and checks of the host that need no VM."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight import host_check, process_check
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.build_check import _DEVICE_LINE, _words
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.codes import REFUSALS, WARNINGS
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.host_check import Host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import mechanisms
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Disk, Vm

ROOT = Path(__file__).resolve().parents[3]
HOST = Host(100_000, 100_000, 1000, True, 0)


def verdict() -> Verdict:
    return Verdict("web1", os.getpid(), None, "qemu-11.1.1-0123456789abcdef")


def this_process(**values: Any) -> Vm:
    """This very process as if it were a VM."""
    facts: dict[str, Any] = {
        "name": "web1",
        "pid": os.getpid(),
        "start_time_ticks": 1,
        "exe": "/q",
        "exe_deleted": False,
        "build_id": None,
        "gnu_build_id": None,
        "version": "11.1.1",
        "argv": ["/q"],
        "unit": None,
        "cgroup": None,
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
    return Vm(**{**facts, **values})


def codes(judged: Verdict) -> set[str]:
    return {item.code for item in judged.refusals}


def sections() -> tuple[set[str], set[str]]:
    """The codes in the first columns of the manual's tables: of refusals, of warnings."""
    refusals, warnings = (ROOT / "docs" / "preflight.md").read_text().split("\n## Refusals")[1].split("\n## Warnings")
    rows = [
        {
            code
            for line in part.splitlines()
            if line.startswith("| `")
            for code in re.findall(r"`([^`]+)`", line.split("|")[1])
        }
        for part in (refusals, warnings)
    ]
    return rows[0], rows[1]


def test_every_code_is_in_the_manual_and_nothing_else() -> None:
    assert sections() == (set(REFUSALS), set(WARNINGS))


def test_every_code_has_a_use_and_every_use_an_action() -> None:
    """What mechanisms and checks name must be known here: an unknown code would end a verdict with a KeyError."""
    folder = Path(mechanisms.__file__).parent
    sources = [folder / "mechanisms.py", folder.parent / "upgrade" / "rehearsal.py"]
    sources += (folder.parent / "preflight").glob("*.py")
    text = "\n".join(path.read_text() for path in sources if path.name != "codes.py")
    used = set(re.findall(r'(?:refuse|warn|say|Obstacle)\(\s*"([a-z0-9-]+)"', text))
    used |= set(re.findall(r'return "([a-z]+(?:-[a-z]+)+)", f?"', text))
    assert used == set(REFUSALS) | set(WARNINGS)


def test_a_reason_found_twice_is_said_once() -> None:
    judged = verdict()
    judged.refuse("qmp-dead", "gone")
    judged.refuse("qmp-dead", "gone")

    assert (judged.verdict, len(judged.refusals)) == ("refuse", 1)


@pytest.mark.parametrize(
    "host,request_,code",
    [
        pytest.param(HOST, {}, None, id="roomy"),
        pytest.param(Host(100, 100_000, 1000, True, 0), {}, "memory-low", id="memory"),
        pytest.param(Host(100_000, 63, 1000, True, 0), {}, "disk-low", id="disk"),
        pytest.param(Host(100_000, 63, 1000, True, 0), {"disk_headroom_mib": 10}, None, id="disk-by-request"),
        pytest.param(Host(100_000, 100_000, 0, True, 0), {}, "disk-low", id="inodes"),
        pytest.param(Host(100_000, 100_000, None, True, 0), {}, None, id="file-system-without-inodes"),
        pytest.param(Host(100_000, 100_000, 1000, False, 0), {}, "kernel-too-old", id="kernel"),
        pytest.param(Host(100_000, 100_000, 1000, True, 3), {}, "ptrace-forbidden", id="yama"),
        pytest.param(Host(100_000, 100_000, 1000, True, 2), {}, None, id="yama-admin-only"),
    ],
)
def test_host(host: Host, request_: dict[str, Any], code: str | None) -> None:
    judged = verdict()

    host.check(judged, PreflightRequest("qemu-11.1.1-0123456789abcdef", **request_), this_process())

    assert codes(judged) == ({code} if code else set())


def test_host_is_read_and_no_directory_made(tmp_path: Path) -> None:
    host = Host.look(str(tmp_path / "not" / "there"))

    assert host.memory_available_mib > 0
    assert host.state_dir_free_mib > 0
    assert host.has_pidfd_getfd is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "limit,fits",
    [
        pytest.param("max", True, id="unlimited"),
        pytest.param(str(4 << 30), True, id="roomy"),
        pytest.param(str(120 << 20), False, id="tight"),
    ],
)
def test_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, fits: bool) -> None:
    group = tmp_path / "system.slice" / "vm.service"
    group.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").touch()
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{100 << 20}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {10 << 20}\n")
    monkeypatch.setattr(host_check, "_CGROUPS", (str(tmp_path),))
    judged = verdict()

    HOST.check(judged, PreflightRequest("b"), this_process(cgroup="/system.slice/vm.service"))

    assert codes(judged) == (set() if fits else {"cgroup-memory-low"})


@pytest.mark.parametrize(
    "label,code",
    [
        pytest.param(None, None, id="no-security-module"),
        pytest.param("unconfined", None, id="apparmor-unconfined"),
        pytest.param("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", None, id="selinux-unconfined"),
        pytest.param("libvirt-6a2b (enforce)", "security-label", id="apparmor-enforced"),
        pytest.param("libvirt-6a2b (complain)", None, id="apparmor-complains"),
        pytest.param("system_u:system_r:svirt_t:s0:c1,c2", "security-label", id="svirt"),
    ],
)
def test_confinement(label: str | None, code: str | None) -> None:
    judged = verdict()

    process_check.check_twin(judged, this_process(security_label=label))

    assert codes(judged) == ({code} if code else set())
    if label and "complain" in label:
        assert {item.code for item in judged.warnings} >= {"security-label"}


def test_image_under_the_path_must_be_the_one_that_is_open(tmp_path: Path) -> None:
    held, other = tmp_path / "held", tmp_path / "other"
    other.touch()
    with open(held, "wb"):
        for path, expected in ((held, set()), (other, {"image-replaced"}), (tmp_path / "none", {"image-gone"})):
            judged = verdict()
            disks = [Disk("d", "n", "raw", True, [str(path)])]
            process_check.check_images(judged, this_process(disks=disks), process_check.OpenImages())
            assert codes(judged) == expected


def test_lists_of_help_are_understood() -> None:
    devices = 'Network devices:\nname "virtio-net-pci", bus PCI, alias "virtio-net"\nname "e1000", bus PCI, desc "x"\n'

    assert {name for pair in _DEVICE_LINE.findall(devices) for name in pair if name} == {
        "virtio-net-pci",
        "virtio-net",
        "e1000",
    }
    assert _words("Available netdev backend types:\nsocket\ntap\n") == {"socket", "tap"}
    assert _words("List of user creatable objects:\n  rng-random\n") == {"rng-random"}
