# SPDX-License-Identifier: GPL-3.0-or-later
"""What is run in which configuration."""

from __future__ import annotations

from dataclasses import dataclass

# As the guest knows a configuration → as people read it.
CONFIGS = {"stock": "stock", "one": "one core", "two": "two cores", "control": "control"}
LOADED = ("stock", "one", "two")
ALL = (*LOADED, "control")
DEBIAN = "debian"
# A kernel of our own that checks itself (lab/kernels/debug.config). It is slow, and large.
DEBUG = "debug"


@dataclass(frozen=True)
class Case:
    """A script in ``guest/cases``, and the configurations it is run in, ``amd`` and ``intel``.

    ``limit_s`` is for AMD; Bochs gets ten times that. ``one_thread``: emulate both CPUs in one thread. With
    a thread for each QEMU now and then loses interrupts and translations of busy VMs, with the kernel's own KVM too.
    ``fault``: what the guest of the configuration ``control`` has to have told, in a pattern.
    ``reset``: how the machine is to end after the word ``ready``, in a pattern that has to be (or, with ``!`` before it, must
    not be) in what it writes. ``python``: the machine has Python, the modules of the collection and artifacts.
    ``kernel``: which one is booted.
    """

    name: str
    title: str
    amd: tuple[str, ...]
    intel: tuple[str, ...] = ()
    limit_s: float = 90
    arguments: str = ""
    one_thread: bool = False
    fault: str = r"TSC_AUX .*is [0-9a-f]+"
    reset: str = ""
    python: bool = False
    kernel: str = DEBIAN


CASES = (
    Case("guests", "two VMs per CPU, MSR values of their own", ALL, LOADED, one_thread=True),
    Case("releases", "the same on cores of two releases", ("two",), ("two",), one_thread=True),
    Case("checked", "the same, MSR cache compared with hardware", ("two",), ("two",), one_thread=True),
    Case("hotplug", "CPU offline and online under load", LOADED, one_thread=True),
    Case("first-online", "CPU online for the first time", ALL, arguments="maxcpus=1"),
    Case("reload", "100 times unloaded and loaded", LOADED, limit_s=2400),
    Case(
        "slabs",
        "memory guarded, none left after unload",
        ("stock", "two", "control"),
        limit_s=300,
        arguments="slub_debug=FZPU",
        one_thread=True,
        fault="lost memory, by code that has gone",
    ),
    Case("in-use", "core in use is not unloaded", LOADED, ("two",)),
    Case("abi", "core for another thin ABI is refused", ("one",), ("one",)),
    Case("refusals", "SEV, stock KVM beside thin refused", ("one",), ("one",)),
    Case("names", "nodes, default core, names", ("two",), ("two",)),
    Case(
        "fixed-bug",
        "bug gone on the core with its fix",
        ALL,
        one_thread=True,
        fault=r"and back saw: executed executed executed",
    ),
    Case("nothing-left", "all off and gone after unload", ("one", "two"), ("two",)),
    Case(
        "modules", "Ansible modules: stage, load, choose, unload", ("two",), limit_s=600, one_thread=True, python=True
    ),
    Case(
        "signatures",
        "modules that want signatures: unsigned refused",
        ("one",),
        arguments="module.sig_enforce=1 lockdown=integrity",
        python=True,
    ),
    Case("reboot", "reboot with VMs on each CPU", LOADED, ("two",), reset=r"!Kernel panic|WARNING:|BUG:"),
    Case("panic", "panic with VMs on each CPU", LOADED, ("two",), reset=r"Kernel panic"),
    Case(
        "debug",
        "checking kernel: locks, contexts, memory, leaks",
        ("stock", "two", "control"),
        limit_s=900,
        one_thread=True,
        fault=r"(?s)possible circular locking dependency.*unreferenced object",
        kernel=DEBUG,
    ),
    Case(
        "debug-reboot",
        "the same, reboot with VMs on each CPU",
        ("stock", "two"),
        limit_s=300,
        reset=r"!Kernel panic|WARNING:|BUG:",
        kernel=DEBUG,
    ),
    Case(
        "signed",
        "signed modules taken, others refused",
        ("one",),
        limit_s=900,
        arguments="module.sig_enforce=1",
        one_thread=True,
        python=True,
        kernel=DEBUG,
    ),
)
