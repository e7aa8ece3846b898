# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""VFIO devices of a host and of a process, what the kernel can do with them, and the memory that they lock."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import vfio_host, vfio_kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory, VfioUse
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.locked_memory import locked_memory, pinned_by_user_kib
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_host import (
    GroupMember,
    IommuGroup,
    VfioHost,
    VfioUser,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_kernel import VfioKernel, look_at_kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_use import ask_descriptor, vfio_use
from ansible_collections.vmm.live_upgrade.tests.vfio_world import VfioWorld

CHECK_EXTENSION, MAP_FILE, CHANGE_PROCESS = 0x3B65, 0x3B8F, 0x3B92
UNMAP_ALL, UPDATE_VADDR = 9, 10


@pytest.fixture
def world(tmp_path: Path) -> VfioWorld:
    return VfioWorld(tmp_path)


def look(world: VfioWorld, names: dict[int, str] | None = None) -> VfioHost:
    return vfio_host.look_at_host((names or {}).get, world.root)


def kernel_that_says(monkeypatch: pytest.MonkeyPatch, answers: dict[tuple[int, int | None], int]) -> None:
    """Answer ioctls by request and number (None for those with a structure): a negative answer is an error."""

    def ioctl(_fd: int, request: int, argument: int | bytearray) -> int:
        answer = answers.get((request, argument if isinstance(argument, int) else None), -errno.ENOTTY)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def test_a_host_without_anything(world: VfioWorld) -> None:
    assert look(world) == VfioHost(iommu=False, kernel=VfioKernel())


def test_devices_groups_and_users(world: VfioWorld) -> None:
    world.add_device("0000:01:00.0", "vfio-pci", "12", "vfio0")
    world.add_device("0000:01:00.1", "e1000e", "12")
    world.add_device("0000:01:00.2", None, "12")
    world.add_device("0000:02:00.0", "mlx5_core", "3")
    world.add_device("0000:03:00.0", "nvgrace_gpu_pci", "4", "vfio1")
    world.add_mediated("c0ffee", "40")
    world.add_process(70, "/dev/vfio/12", "/dev/vfio/vfio", "anon_inode:[vfio-device]")
    world.add_process(71, "/dev/vfio/devices/vfio1", "/dev/iommu")
    world.add_process(9, "/dev/vfio/12", "/dev/null")
    world.add_kernel_thread(2)

    found = look(world, {70: "web1", 71: "gpu1"})

    assert found.iommu is True
    assert [(device.address, device.driver, device.group, device.users) for device in found.devices] == [
        ("0000:01:00.0", "vfio-pci", "12", [VfioUser(9, None), VfioUser(70, "web1")]),
        ("0000:03:00.0", "nvgrace_gpu_pci", "4", [VfioUser(71, "gpu1")]),
        ("c0ffee", "vfio_mdev", "40", []),
    ]
    assert [(device.vendor_id, device.device_id) for device in found.devices] == [("0x8086", "0x10c9")] * 2 + [
        (None, None)
    ]
    assert found.groups == [
        IommuGroup("4", [GroupMember("0000:03:00.0", "nvgrace_gpu_pci")]),
        IommuGroup(
            "12",
            [
                GroupMember("0000:01:00.0", "vfio-pci"),
                GroupMember("0000:01:00.1", "e1000e"),
                GroupMember("0000:01:00.2", None),
            ],
        ),
        IommuGroup("40", [GroupMember("c0ffee", "vfio_mdev")]),
    ]


def test_a_group_without_an_iommu_is_known_by_its_other_name(world: VfioWorld) -> None:
    world.add_device("0000:01:00.0", "vfio-pci", "0")
    world.add_process(70, "/dev/vfio/noiommu-0")

    assert look(world).devices[0].users == [VfioUser(70, None)]


def test_a_kernel_is_asked_only_where_its_modules_are_there(world: VfioWorld) -> None:
    (world.root / "dev/vfio").mkdir()
    (world.root / "dev/vfio/vfio").write_text("")  # a node that would have its module loaded
    assert look_at_kernel(world.root) == VfioKernel(None, None, None)


@pytest.mark.parametrize(
    "module,answers,expected",
    [
        pytest.param("vfio_iommu_type1", {}, VfioKernel(None, False, False), id="knows-nothing"),
        pytest.param(
            "vfio_iommu_type1",
            {(CHECK_EXTENSION, UNMAP_ALL): 1, (CHECK_EXTENSION, UPDATE_VADDR): 0},
            VfioKernel(True, False, False),
            id="a-container-without-devices-does-not-own-up-to-it",
        ),
        pytest.param("vfio_iommu_type1", {(CHECK_EXTENSION, UNMAP_ALL): 0}, VfioKernel(False, False, False), id="5.10"),
        pytest.param("", {(CHECK_EXTENSION, UNMAP_ALL): 1}, VfioKernel(False, False, False), id="served-by-iommufd"),
        pytest.param(
            "vfio_iommu_type1",
            {(CHECK_EXTENSION, UNMAP_ALL): 1, (MAP_FILE, None): -errno.EINVAL, (CHANGE_PROCESS, None): -errno.EINVAL},
            VfioKernel(True, True, True),
            id="6.13",
        ),
        pytest.param(
            "vfio_iommu_type1",
            {(CHECK_EXTENSION, UNMAP_ALL): 1, (MAP_FILE, None): -errno.EPERM, (CHANGE_PROCESS, None): -errno.EPERM},
            VfioKernel(True, None, None),
            id="forbidden-to-ask",
        ),
    ],
)
def test_what_a_kernel_can_do(
    world: VfioWorld,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    answers: dict[tuple[int, int | None], int],
    expected: VfioKernel,
) -> None:
    world.add_node("vfio/vfio", module)
    world.add_node("iommu")
    kernel_that_says(monkeypatch, answers)

    assert look_at_kernel(world.root) == expected


def test_a_node_that_cannot_be_opened_gives_no_answer(world: VfioWorld) -> None:
    (world.root / "sys/class/misc/iommu").mkdir(parents=True)
    assert look_at_kernel(world.root).iommufd_change_process is None


def test_a_descriptor_that_is_no_device_knows_nothing() -> None:
    """The real system call, on a pipe."""
    read_fd, write_fd = os.pipe()
    try:
        assert vfio_kernel.iommufd_can_change_process(read_fd) is False
        with pytest.raises(OSError, match="ioctl"):
            vfio_kernel.container_can_change_process(read_fd)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_descriptors_of_a_process_are_asked_and_silence_is_no_answer() -> None:
    """The real way to a descriptor of a process, this one."""
    read_fd, write_fd = os.pipe()

    def is_a_pipe(fd: int) -> bool:
        return "pipe" in os.readlink(f"/proc/self/fd/{fd}")

    def fails(_fd: int) -> bool:
        raise OSError(errno.ENOTTY, "no such question")

    opened = len(os.listdir("/proc/self/fd"))
    try:
        assert ask_descriptor(os.getpid(), read_fd, is_a_pipe) is True
        assert ask_descriptor(os.getpid(), read_fd, fails) is None
        assert ask_descriptor(os.getpid(), 99_999, is_a_pipe) is None
        assert ask_descriptor(4_000_000, read_fd, is_a_pipe) is None
        assert len(os.listdir("/proc/self/fd")) == opened
    finally:
        os.close(read_fd)
        os.close(write_fd)


LEGACY = {3: "/dev/vfio/vfio", 4: "/dev/vfio/12", 5: "anon_inode:[vfio-device]"}
IOMMUFD = {6: "/dev/iommu", 7: "/dev/vfio/devices/vfio0"}


@pytest.mark.parametrize(
    "links,answers,expected",
    [
        pytest.param({0: "/dev/null"}, {}, None, id="none"),
        pytest.param({6: "/dev/iommu"}, {}, None, id="an-iommufd-alone"),
        pytest.param(LEGACY, {3: True}, VfioUse(["12"], [], True), id="legacy"),
        pytest.param(LEGACY, {3: False}, VfioUse(["12"], [], False), id="legacy-that-cannot"),
        pytest.param(LEGACY, {3: None}, VfioUse(["12"], [], None), id="legacy-that-is-silent"),
        pytest.param({4: "/dev/vfio/12"}, {}, VfioUse(["12"], [], None), id="group-without-a-container"),
        pytest.param(IOMMUFD, {6: True}, VfioUse([], ["vfio0"], True, True), id="iommufd"),
        pytest.param({**LEGACY, 6: "/dev/iommu"}, {3: True}, VfioUse(["12"], [], True), id="iommufd-not-used"),
        pytest.param({**LEGACY, **IOMMUFD}, {3: True, 6: True}, VfioUse(["12"], ["vfio0"], True, True), id="both"),
        pytest.param(
            {**LEGACY, **IOMMUFD}, {3: None, 6: False}, VfioUse(["12"], ["vfio0"], False, True), id="one-no-decides"
        ),
        pytest.param(
            {**LEGACY, 9: "/dev/vfio/vfio"}, {3: True, 9: None}, VfioUse(["12"], [], None), id="two-containers"
        ),
    ],
)
def test_how_a_process_has_its_devices(
    links: dict[int, str], answers: dict[int, bool | None], expected: VfioUse | None
) -> None:
    def ask(pid: int, number: int, question: Callable[[int], bool]) -> bool | None:
        assert pid == 70
        return True if question is vfio_kernel.iommufd_counts_for_user else answers[number]

    assert vfio_use(70, links, ask) == expected


@pytest.mark.parametrize(
    "answers,expected",
    [
        ({6: True}, True),
        ({6: False}, False),
        ({6: None}, None),
        ({6: False, 8: True}, True),
        ({6: False, 8: None}, None),
    ],
)
def test_for_whom_iommufd_counts(answers: dict[int, bool | None], expected: bool | None) -> None:
    def ask(_pid: int, number: int, question: Callable[[int], bool]) -> bool | None:
        return answers[number] if question is vfio_kernel.iommufd_counts_for_user else True

    links = {**IOMMUFD, **dict.fromkeys(answers, "/dev/iommu")}
    use = vfio_use(70, links, ask)
    assert use and use.counted_for_user is expected


@pytest.mark.parametrize(
    "values,expected",
    [
        pytest.param({}, LockedMemory(0, 0, None, None, True), id="root"),
        pytest.param({"bounding": 0}, LockedMemory(0, 0, None, None, False), id="root-without-the-capability"),
        pytest.param({"uid": 64}, LockedMemory(0, 0, None, None, False), id="another-user"),
        pytest.param(
            {"uid": 64, "ambient": 1 << 14}, LockedMemory(0, 0, None, None, True), id="who-keeps-it-over-exec"
        ),
        pytest.param(
            {"uid": 64, "locked_kib": 5, "pinned_kib": 7, "limit": "8192"},
            LockedMemory(5, 7, 8, None, False),
            id="limit",
        ),
    ],
)
def test_locked_memory(world: VfioWorld, values: dict[str, int | str], expected: LockedMemory) -> None:
    world.add_process(70, **values)  # type: ignore[arg-type]

    assert locked_memory(70, world.root) == expected


def test_locked_memory_of_a_real_process() -> None:
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)

    found = locked_memory(os.getpid())

    assert [found.limit_kib, found.hard_limit_kib] == [
        None if limit == resource.RLIM_INFINITY else limit // 1024 for limit in limits
    ]


def test_a_process_that_has_gone_has_no_locked_memory(world: VfioWorld) -> None:
    with pytest.raises(FileNotFoundError):
        locked_memory(70, world.root)


def test_what_a_user_has_pinned_is_that_of_all_processes_of_the_user(world: VfioWorld) -> None:
    world.add_process(70, uid=64, pinned_kib=100)
    world.add_process(71, uid=64, pinned_kib=20)
    world.add_process(72, uid=65, pinned_kib=7)
    world.add_kernel_thread(2)

    assert (pinned_by_user_kib(64, world.root), pinned_by_user_kib(0, world.root)) == (120, 0)
