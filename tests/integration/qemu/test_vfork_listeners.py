# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets at which a VM listens, in the mode cpr-vfork: the new process has those of the old one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.qemu.process_facts import (
    is_blocking,
    listener,
    listening_at,
)
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import HANGS, NIC, Vm

Start = Callable[..., Vm]


@pytest.fixture(params=["unix", "abstract", "tcp", "vnc"])
def listens(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Any]:
    """Options with which a VM listens, and where that is."""
    if request.param == "unix":
        return _chardev(f"path={tmp_path}/served.sock"), f"{tmp_path}/served.sock"
    if request.param == "abstract":
        return _chardev(f"path={tmp_path}/served,abstract=on,tight=on"), f"\0{tmp_path}/served"
    if request.param == "vnc":
        return ["-vnc", f"unix:{tmp_path}/vnc.sock"], f"{tmp_path}/vnc.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _chardev(f"host=127.0.0.1,port={port}"), ("127.0.0.1", port)


def test_listening_socket_is_found_by_its_address(
    start: Start, qemu_old: Path, qemu_new: Path, listens: tuple[list[str], Any]
) -> None:
    options, address = listens
    vm = start(extra=[*NIC, *options])
    socket_of_vm = listening_at(vm.pid, address)
    for binary in (qemu_new, qemu_old):
        assert vm.hand_over(binary, *HANGS, **{"prepare-timeout": 500})["phase"] == "aborted"
        assert vm.hand_over(binary, "-global", "migration.x-cpr-vfork-fault=loaded:exit")["phase"] == "aborted"
        assert _greets(address), "the old one cannot be reached any more"

        info = vm.hand_over(binary)

        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        assert listening_at(vm.pid, address) == socket_of_vm, "it was made anew"
        assert _greets(address)


def test_client_of_two_that_listen_cannot_block_either(
    start: Start, qemu_new: Path, listens: tuple[list[str], Any]
) -> None:
    """It wakes up both, and whoever comes second must not wait for the next client. They race too rarely to be seen at it."""
    options, address = listens
    vm = start(extra=[*NIC, *options])
    info = vm.hand_over(qemu_new)
    assert info["phase"] == "running", info

    for pid in (vm.pid, info["child-pid"]):
        assert not is_blocking(pid, listener(pid, address))


def test_listening_socket_that_the_new_command_lacks_is_not_kept(start: Start, qemu_new: Path, tmp_path: Path) -> None:
    served = tmp_path / "served.sock"
    vm = start(extra=_chardev(f"path={served}"))
    command = vm.command(qemu_new)
    vm.begin(command[: command.index("-chardev")])

    info = vm.end()

    assert info["phase"] == "running", info
    assert listening_at(vm.pid, str(served))
    assert not listening_at(info["child-pid"], str(served))


def _chardev(where: str) -> list[str]:
    return ["-chardev", f"socket,id=served,{where},server=on,wait=off", "-mon", "chardev=served,mode=control"]


def _greets(address: Any) -> bool:
    """Whether a client gets the first words of a monitor or of VNC."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(address)
        return client.recv(3) in (b'{"Q', b"RFB")
