# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP connection into the guest and an open serial console, over upgrades that arrive and upgrades that are taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.load.clients import Console
from ansible_collections.vmm.live_upgrade.tests.integration.load.loaded_vm import LoadedVm, build_of, faulty_build
from ansible_collections.vmm.live_upgrade.tests.integration.load.namespace import TapNamespace


class Bench:
    """The VM with a stream and a console that were open before anything was done to it."""

    def __init__(self, vm: LoadedVm) -> None:
        self.vm = vm
        self.stream = vm.stream()
        self.console = Console(vm.serial_path)
        self.assert_all_go_on()

    def assert_all_go_on(self) -> None:
        """The connections of before still work, both ways."""
        self.stream.wait_more()
        self.console.exchange()
        self.console.wait_tick()
        self.vm.wait_records(1)

    def close(self) -> None:
        self.console.close()
        self.stream.close()


@pytest.fixture
def bench(qemu_old: Path, tmp_path: Path, namespace: TapNamespace) -> Iterator[Bench]:
    with LoadedVm(qemu_old, tmp_path / "vm", namespace) as vm:
        made = Bench(vm)
        yield made
        made.close()


def test_connections_survive_upgrades_and_aborted_ones(
    bench: Bench, qemu_old: Path, qemu_new: Path, tmp_path: Path
) -> None:
    """The stream checks every byte, and the console misses no line."""
    nonce = bench.vm.status().nonce
    for target in (qemu_new, qemu_old):
        for fault in ("ready:exit", "loaded:exit", "committed:kill"):
            result = bench.vm.move(faulty_build(tmp_path / target.parts[-3], target, fault))
            assert result.outcome == "rolled_back", result
            bench.assert_all_go_on()
        result = bench.vm.rehearse(build_of(target))
        assert result.outcome == "rolled_back" and "rehearsal" in str(result.error), result
        bench.assert_all_go_on()

        bench.vm.upgrade(build_of(target))
        bench.assert_all_go_on()
        assert bench.console.missing() == []

    assert bench.vm.status().nonce == nonce


def test_new_clients_find_what_was_handed_over(bench: Bench, qemu_new: Path) -> None:
    bench.vm.upgrade(build_of(qemu_new))
    bench.assert_all_go_on()
    bench.console.close()

    bench.console = Console(bench.vm.serial_path)
    second = bench.vm.stream()

    bench.assert_all_go_on()
    second.wait_more()
    second.close()
