# SPDX-License-Identifier: GPL-3.0-or-later
"""Which throttled disks of which QEMU may lose requests when an upgrade is taken back."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.throttle_check import check_throttles
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm

VIRTIO = "/machine/peripheral/hd1/virtio-backend"
IN_THREAD = {VIRTIO: {"iothread": "/objects/io1"}}
LIMITED = {"iops-total": 200, "iops-total-max-length": 1}
LIFTED = {"iops-total": 0, "iops-total-max-length": 1}


class Monitor:
    """Answers as QEMU does for one disk: ``top`` is its node, ``nodes`` the graph, ``properties`` those of QOM by path."""

    def __init__(
        self, drive: dict[str, Any], nodes: list[dict[str, Any]], properties: dict[str, dict[str, Any]] | None = None
    ) -> None:
        self._answers: dict[str, Any] = {"query-block": [drive], "query-named-block-nodes": nodes}
        self._properties = properties or {}

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if command != "qom-get":
            return self._answers[command]
        assert arguments is not None
        try:
            return self._properties[arguments["path"]][arguments["property"]]
        except KeyError:
            raise QmpCommandError("qom-get", "GenericError", "no such property") from None


def drive(qdev: str = VIRTIO, **medium: Any) -> dict[str, Any]:
    return {"device": "d1", "qdev": qdev, "inserted": {"node-name": "top", **medium}}


def node(name: str, drv: str, child: str | None = None, file: str = "/image") -> dict[str, Any]:
    return {"node-name": name, "drv": drv, "file": file, "children": [{"node-name": child}] if child else []}


PLAIN = [node("top", "raw", "file"), node("file", "file")]
FILTER = 'json:{"throttle-group": "tg1", "driver": "throttle", "file": {"driver": "file", "filename": "/image"}}'
BELOW_QCOW2 = [node("top", "qcow2", "slow"), node("slow", "throttle", "file", FILTER), node("file", "file")]


def check(monitor: Monitor, version: str | None = "10.2.2") -> list[tuple[str, str]]:
    vm = Vm("web1", os.getpid(), 1, "/q", False, None, None, version, ["/q"], None, None, 0, 0)
    judged = Verdict("web1", vm.pid, None, "qemu-11.1.1-0123456789abcdef")
    check_throttles(judged, vm, monitor)  # type: ignore[arg-type]
    return [(item.code, item.message) for item in judged.refusals]


@pytest.mark.parametrize(
    ("monitor", "what"),
    [
        pytest.param(
            Monitor(drive(group="d1", iops=200), PLAIN, IN_THREAD),
            "d1 is throttled (d1) and runs in the I/O thread io1",
            id="drive",
        ),
        pytest.param(
            Monitor(drive(), BELOW_QCOW2, {**IN_THREAD, "/objects/tg1": {"limits": LIMITED}}),
            "d1 is throttled (tg1)",
            id="filter-below",
        ),
        pytest.param(Monitor(drive(), BELOW_QCOW2, IN_THREAD), "d1 is throttled (tg1)", id="group-does-not-tell"),
        pytest.param(
            Monitor(drive(), [node("top", "throttle", "file", 'json:{"driver": "thro')], IN_THREAD),
            "d1 is throttled (node top)",
            id="name-cut-off",
        ),
        pytest.param(
            Monitor(
                drive("sd1", group="d1", bps_wr=1000),
                PLAIN,
                {
                    "/machine/peripheral/sd1": {"parent_bus": "/machine/peripheral/scsi0/virtio-backend/scsi0.0"},
                    "/machine/peripheral/scsi0/virtio-backend": {"iothread": "/objects/io2"},
                },
            ),
            "in the I/O thread io2",
            id="scsi",
        ),
        pytest.param(
            Monitor(
                drive(group="d1", bps=1000),
                PLAIN,
                {VIRTIO: {"iothread": "", "iothread-vq-mapping": [{"iothread": "io3"}, {"iothread": "io4"}]}},
            ),
            "in the I/O thread io3, io4",
            id="mapped-queues",
        ),
    ],
)
def test_throttled_disk_in_an_io_thread_is_refused(monitor: Monitor, what: str) -> None:
    ((code, message),) = check(monitor)

    assert code == "throttled-iothread"
    assert what in message


@pytest.mark.parametrize(
    "monitor",
    [
        pytest.param(Monitor(drive(group="d1", iops=200), PLAIN, {VIRTIO: {"iothread": ""}}), id="main-loop"),
        pytest.param(Monitor(drive(), PLAIN, IN_THREAD), id="not-throttled"),
        pytest.param(Monitor(drive(group="d1", iops=0), PLAIN, IN_THREAD), id="limits-lifted"),
        pytest.param(
            Monitor(drive(), BELOW_QCOW2, {**IN_THREAD, "/objects/tg1": {"limits": LIFTED}}), id="group-lifted"
        ),
        pytest.param(Monitor({"device": "cd", "qdev": VIRTIO}, [], IN_THREAD), id="empty"),
        pytest.param(Monitor({**drive(group="d1", iops=200), "qdev": ""}, PLAIN, IN_THREAD), id="no-device"),
    ],
)
def test_other_disks_are_not(monitor: Monitor) -> None:
    assert check(monitor) == []


@pytest.mark.parametrize(("version", "refused"), [("10.2.2", True), ("11.0.0", True), ("11.1.0", False), (None, False)])
def test_it_was_mended_in_11_1(version: str | None, refused: bool) -> None:
    assert bool(check(Monitor(drive(group="d1", iops=200), PLAIN, IN_THREAD), version)) == refused
