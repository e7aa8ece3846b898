# SPDX-License-Identifier: GPL-3.0-or-later
"""The VM: its command line, and the process that runs it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpDeadError, QmpError
from host.kvm import node
from host.limits import limit
from host.prepare import open_device, open_iommufd
from host.status import Status
from vfiolab.cases import APART, BY_DESCRIPTOR, LIMITED, OF_PROCESS
from vfiolab.devices import Device

MACHINE = "pc-q35-10.2"
MEMORY_MIB = 256
_IOMMUFD = 99
_FIRST_DESCRIPTOR = 100
RUN = Path("/run/vm")
CONSOLE = RUN / "console"
LOG = RUN / "log"
# A machine with much other work starts a VM in minutes.
PATIENCE_S = 600.0
_KERNEL = (
    "console=ttyS0 loglevel=4 mitigations=off nokaslr no_timer_check tsc=reliable panic=1 net.ifnames=0 "
    # what stands still is seen from outside; the guest would take a busy machine for an error of its own
    "nowatchdog rcupdate.rcu_cpu_stall_suppress=1 "
    "pci=lastbus=0 memmap=64K$0x8000000 nvme_core.io_timeout=30"
)


@dataclass(frozen=True)
class Spec:
    """What the VM is made of. ``addresses``: device name → PCI address on the host. ``backend``: ``legacy`` or ``iommufd``.

    ``plugged``: names of the devices that are plugged in once it runs, each into a root port at its address. ``more``: further
    properties of each device, as on a command line. ``way``: how it is started (vfiolab/cases.py). ``late``: names of devices
    that the guest uses once it is told to. ``unplugged``: of those in ``plugged``, what is not there at the moment.
    """

    devices: tuple[Device, ...]
    addresses: dict[str, str]
    backend: str
    plugged: tuple[str, ...] = ()
    more: str = ""
    way: str = ""
    late: tuple[str, ...] = ()
    unplugged: tuple[str, ...] = ()

    def at_start(self) -> list[Device]:
        """The devices that it has from its start."""
        return [device for device in self.devices if device.name not in self.plugged]

    def later(self) -> list[Device]:
        """Those that are plugged in."""
        return [device for device in self.devices if device.name in self.plugged]

    def argv(self, build: str, socket: str, kvm: str) -> list[str]:
        """The command line of a VM that is started: with nothing plugged in."""
        folder = f"/qemu/{build}"
        # the guest is told in the order in which it will find them
        jobs = ",".join(device.job(device.name in self.late) for device in (*self.at_start(), *self.later()))
        return [
            f"{folder}/bin/qemu-system-x86_64", "-L", f"{folder}/share/qemu",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", f"{MACHINE},memory-backend=ram0,aux-ram-share=on,hpet=off",
            "-accel", f"kvm,device={kvm}", "-cpu", "host", "-smp", "1", "-m", f"{MEMORY_MIB}M",
            "-object", f"memory-backend-memfd,id=ram0,size={MEMORY_MIB}M,share=on",
            # which asks no device whether it can be booted from, as SeaBIOS does, at the price of many exits; and sets up no port
            *(("-bios", "qboot.rom") if not self.plugged else ()),
            "-kernel", "/guest/vmlinuz", "-initrd", "/guest/initrd.gz", "-append", f"{_KERNEL} vfio.jobs={jobs}",
            "-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{socket},server=on,wait=off",
            *(argument for name in self._iommufds() for argument in ("-object", self._iommufd(name))),
            *(argument for device in self.later() for argument in ("-device", _port(device))),
            *(argument for device in self.at_start() for argument in ("-device", self.device(device))),
        ]  # fmt: skip

    def _iommufds(self) -> list[str]:
        return list(dict.fromkeys(self._iommufd_of(device) for device in self.devices if self.backend == "iommufd"))

    def _iommufd_of(self, device: Device) -> str:
        return f"iommufd-{device.name}" if self.way == APART else "iommufd0"

    def _iommufd(self, name: str) -> str:
        return ",".join([f"iommufd,id={name}", *(f"fd={number}" for number in self.inherited())])

    def inherited(self) -> list[int]:
        """The descriptors that each process is given under the same numbers."""
        return [_IOMMUFD] if self.way == OF_PROCESS else []

    def plugged_argv(self) -> list[str]:
        """What is on the command line of a process besides, once the devices are plugged in."""
        there = [device for device in self.later() if device.name not in self.unplugged]
        return [argument for device in there for argument in ("-device", self.device(device))]

    def device(self, device: Device) -> str:
        """The argument of ``-device`` for it."""
        return ",".join(f"{key}={value}" for key, value in self.properties(device).items()).removeprefix("driver=")

    def properties(self, device: Device) -> dict[str, str | int]:
        """The arguments of ``device_add`` for it."""
        at = {"bus": f"port-{device.name}"} if device.name in self.plugged else {"addr": f"{device.address:#x}"}
        backend = {"iommufd": self._iommufd_of(device)} if self.backend == "iommufd" else {}
        by_descriptor = self.way == BY_DESCRIPTOR
        host = {"fd": descriptor(device)} if by_descriptor else {"host": self.addresses[device.name]}
        more = dict(word.split("=", 1) for word in self.more.split(",") if word)
        return {"driver": "vfio-pci", **host, "id": device.name, **at, "rombar": 0, **backend, **more}


def descriptor(device: Device) -> int:
    """The number under which a QEMU that is given it as a descriptor has it."""
    return _FIRST_DESCRIPTOR + device.slot


def _port(device: Device) -> str:
    return f"pcie-root-port,id=port-{device.name},addr={device.address:#x},chassis={device.address}"


class Vm:
    """A running VM. ``pid`` and ``monitor`` are those of the process that runs it now."""

    def __init__(self, spec: Spec, build: str, core: str = "") -> None:
        """``core``: ``A`` or ``B`` for a VM on a core of KVM; may be changed before the next process is started."""
        RUN.mkdir(exist_ok=True)
        for leftover in RUN.iterdir():
            leftover.unlink()
        self.spec = spec
        self.build = build
        self.core = core
        self.generation = 0
        self.pid = start(spec, spec.argv(build, self.socket(), node(core)))
        self.monitor = connect(self.socket(), self.pid)
        self.status = Status(self.pid)

    def socket(self, generation: int | None = None) -> str:
        """The path of the monitor; each process has one of its own."""
        return f"{RUN}/monitor{self.generation if generation is None else generation}"

    def next_argv(self, build: str) -> list[str]:
        """The command line of the next process. Each call has another monitor."""
        self.generation += 1
        return [*self.spec.argv(build, self.socket(), node(self.core)), *self.spec.plugged_argv()]

    def follow(self, pid: int, build: str) -> None:
        """Go on with process ``pid``, which was started last; the one before is ended."""
        self.monitor.close()
        end(self.pid)
        self.pid = pid
        self.build = build
        self.monitor = connect(self.socket(), pid)

    def await_up(self) -> None:
        """Return when the load runs on all devices that are not late, also on those that are plugged in for it then."""
        later = self.spec.later()
        used = [device for device in self.spec.at_start() if device.name not in self.spec.late]
        if all(device.load == "edu" for device in later):  # any other the guest waits for before it starts the load
            self.await_load(dict.fromkeys(used, 0))
        for device in later:
            self.monitor.execute("device_add", self.spec.properties(device))
        self.await_load(dict.fromkeys([*used, *later], 0))

    def await_load(self, before: dict[Device, int]) -> None:
        """Return when each of the devices has done more I/Os than ``before``."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.status.up() or self._idle(before):
            if not alive(self.pid) or time.monotonic() > deadline:
                names = ", ".join(self._idle(before))
                raise RuntimeError(f"the VM does not come up, nothing from {names}:\n{last_words()}")
            time.sleep(0.05)  # a word in RAM tells nobody that it has changed

    def _idle(self, before: dict[Device, int]) -> list[str]:
        return [device.name for device, ios in before.items() if self.status.counts(device.slot).ios <= ios]

    def pinned_kib(self) -> int:
        """What the process has locked; VFIO accounts there what it has pinned."""
        if not alive(self.pid):
            return 0
        status = Path(f"/proc/{self.pid}/status").read_text()
        return sum(int(kib) for kib in re.findall(r"^Vm(?:Lck|Pin):\s+(\d+) kB", status, re.MULTILINE))

    def state(self) -> str:
        """What QEMU says of a VM that does not do its work."""
        try:
            status = self.monitor.execute("query-status")
            looks = [
                self.monitor.execute("human-monitor-command", {"command-line": "info registers"}) for _ in range(2)
            ]
        except QmpError as error:
            return f"process {self.pid}: {error}"
        return f"process {self.pid}: {status}\n" + "\n".join(looks)

    def close(self) -> None:
        self.monitor.close()
        self.status.close()
        end(self.pid)


def start(spec: Spec, argv: list[str]) -> int:
    """Start the first process of a VM, in the way that it is to be. Returns its number."""
    if spec.way == LIMITED:
        return spawn(argv, preexec=limit).pid
    if spec.way == OF_PROCESS:
        return _spawn_with((open_iommufd(_IOMMUFD),), argv, limit)
    if spec.way != BY_DESCRIPTOR:
        return spawn(argv).pid
    numbers = tuple(open_device(spec.addresses[device.name], descriptor(device)) for device in spec.devices)
    return _spawn_with(numbers, argv)


def _spawn_with(numbers: tuple[int, ...], argv: list[str], preexec: Callable[[], None] | None = None) -> int:
    """Start a process that alone has the descriptors."""
    try:
        return spawn(argv, numbers, preexec).pid
    finally:
        for number in numbers:
            os.close(number)  # a device that somebody else has open is not given to the next VM


def spawn(
    argv: list[str], pass_fds: tuple[int, ...] = (), preexec: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    with open(LOG, "ab") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds, preexec_fn=preexec
        )


def connect(path: str, pid: int) -> QmpClient:
    """The monitor of process ``pid``, once it serves it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return QmpClient.connect(path, PATIENCE_S)
        except QmpDeadError as error:
            if not alive(pid) or time.monotonic() > deadline:
                raise RuntimeError(f"process {pid} does not serve {path}:\n{last_words()}") from error
            time.sleep(0.02)


def end(pid: int) -> None:
    """Kill process ``pid`` and wait until it is gone, with all its threads and what they hold; a child of ours is reaped."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [])
        os.waitid(os.P_PIDFD, handle, os.WEXITED)
    except (ChildProcessError, ProcessLookupError):
        pass
    finally:
        os.close(handle)


def alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def last_words() -> str:
    """The ends of QEMU's log and of the guest's console."""
    parts = [path.read_text(errors="replace")[-3000:] for path in (LOG, CONSOLE) if path.exists()]
    return "\n".join(parts)
