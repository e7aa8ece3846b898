# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node of KVM in a command line: each way to ask for KVM becomes one that names it, and loses nothing else."""

from __future__ import annotations

import shlex

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.accelerator import (
    chooses_accelerator,
    kvm_node_named,
    on_kvm,
    with_kvm_node,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import parse, render
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import Draft
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm

NODE = "/dev/kvm-00000000000000bb"
ON_NODE = f"-accel kvm,device={NODE}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("-M q35 -accel kvm -m 1G", f"-M q35 {ON_NODE} -m 1G", id="accel"),
        pytest.param(
            "-accel kvm,dirty-ring-size=4096,kernel-irqchip=split",
            f"-accel kvm,dirty-ring-size=4096,kernel-irqchip=split,device={NODE}",
            id="accel-with-properties",
        ),
        pytest.param(
            "-accel kvm,device=/dev/kvm-00000000000000aa,x=1", f"-accel kvm,device={NODE},x=1", id="another-node"
        ),
        pytest.param("-accel accel=kvm", ON_NODE, id="accel-with-its-key"),
        pytest.param("-accel kvm -accel tcg -m 1G", f"{ON_NODE} -m 1G", id="no-fallback"),
        pytest.param("-accel hvf -accel kvm,x=1", f"-accel kvm,x=1,device={NODE}", id="second-choice"),
        pytest.param("-enable-kvm -m 1G", f"{ON_NODE} -m 1G", id="enable-kvm"),
        pytest.param("-machine q35,accel=kvm,usb=off", f"{ON_NODE} -machine q35,usb=off", id="machine"),
        pytest.param(
            "-machine accel=kvm:tcg,type=q35,kernel-irqchip=split",
            f"{ON_NODE} -machine q35,kernel-irqchip=split",
            id="machine-list",
        ),
        pytest.param("-M q35 -M accel=kvm -m 1G", f"-M q35 {ON_NODE} -m 1G", id="machine-of-its-own"),
        pytest.param("-M q35,accel=tcg -enable-kvm", f"{ON_NODE} -M q35", id="last-one-counted"),
        pytest.param("-M q35 -m 1G", f"-M q35 -m 1G {ON_NODE}", id="by-the-name-of-the-program"),
        pytest.param(
            "-machine q35,accel=kvm,memory-backend=a,,b", f"{ON_NODE} -machine q35,memory-backend=a,,b", id="comma"
        ),
    ],
)
def test_kvm_is_opened_through_the_node(before: str, after: str) -> None:
    options = with_kvm_node(parse(["qemu", *shlex.split(before)]), NODE)

    assert shlex.join(render(options)) == after
    assert kvm_node_named(options) == NODE
    assert with_kvm_node(options, NODE) == options


@pytest.mark.parametrize(
    ("words", "node", "chosen"),
    [
        ("-accel kvm,device=/dev/kvm-x,y=1", "/dev/kvm-x", True),
        ("-accel kvm", None, True),
        ("-enable-kvm", None, True),
        ("-machine q35,accel=tcg", None, True),
        ("-machine q35", None, False),
    ],
)
def test_what_a_command_line_says_of_its_node(words: str, node: str | None, chosen: bool) -> None:
    options = parse(["qemu", *shlex.split(words)])

    assert (kvm_node_named(options), chooses_accelerator(options)) == (node, chosen)


def test_kvm_that_the_name_of_the_program_chose_is_asked_for_by_name() -> None:
    """Staged builds are called ``qemu-system-x86_64``, which prefers TCG."""
    options = parse(["/usr/libexec/qemu-kvm", "-m", "1G"])
    draft = Draft(1, "/", options, of_child=True)

    kvm = on_kvm(vm("kvm", "/dev/kvm"), options, None, draft)
    tcg = on_kvm(vm("tcg", None), options, None, draft)

    assert render(kvm) == ["-m", "1G", "-accel", "kvm,device=/dev/kvm"]
    assert (tcg, draft.problems, draft.changes) == (options, [], [])


def test_a_node_that_was_given_as_a_descriptor_is_refused_when_it_would_change() -> None:
    options = parse(["qemu", "-accel", "kvm,device=/dev/fdset/3", "-add-fd", "fd=9,set=3"])
    draft = Draft(1, "/", options, of_child=True)

    assert on_kvm(vm("kvm", "/dev/kvm"), options, None, draft) == options
    assert draft.problems == []
    on_kvm(vm("kvm", "/dev/kvm"), options, NODE, draft)

    assert [problem.code for problem in draft.problems] == ["option-refused"]


def vm(accelerator: str, kvm_device: str | None) -> Vm:
    facts = Vm("web1", 1, 1, "/q", False, None, None, "11.1.1", ["/q"], None, None, 0, 0)
    facts.accelerator, facts.kvm_device = accelerator, kvm_device
    return facts
