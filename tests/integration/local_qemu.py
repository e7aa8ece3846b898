# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small real QEMUs on this machine, for tests: a guest of a few bytes counts in its RAM, and tests watch it from outside.

``tests/integration/conftest.py`` turns this into fixtures: ``start_qemu`` (a factory that ends what it started),
``qemu_old`` and ``qemu_new`` (paths of a 10.2 and an 11.1 binary), ``accel``.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpDeadError

COUNTER_OFFSET = 0x8000
_START_S = 30.0
_COUNT_S = 60.0
_POLL_S = 0.01

# The guests are firmware: 64 KiB at the end of the 32-bit address space, seen at 0xf0000 too, whose last 16 bytes run
# first. So a VM counts as soon as it runs, without the seconds that SeaBIOS takes. They increment the little-endian u64 at
# 0x8000, in 16-bit real mode. "tick" does so on a 1 kHz timer interrupt and halts in between: many share one CPU.
_TICK = bytes.fromhex(
    "fa"  # cli
    "31c0"  # xor   %ax,%ax
    "8ed8"  # mov   %ax,%ds
    "8ed0"  # mov   %ax,%ss
    "bc007c"  # mov   $0x7c00,%sp
    "66b91b000000"  # mov   $0x1b,%ecx         IA32_APIC_BASE
    "0f32"  # rdmsr
    "80e4f7"  # and   $0xf7,%ah           without the local APIC interrupts come straight from the controller
    "0f30"  # wrmsr
    "c70620004900"  # movw  $handler,0x20     interrupt vector 8 (IRQ 0): offset
    "8c0e2200"  # mov   %cs,0x22              and segment
    "b011e620"  # mov   $0x11,%al; out %al,$0x20  interrupt controller: begin,
    "b008e621"  # mov   $0x08,%al; out %al,$0x21  vectors from 8 on,
    "b004e621"  # mov   $0x04,%al; out %al,$0x21  the second one at IRQ 2,
    "b001e621"  # mov   $0x01,%al; out %al,$0x21  8086 mode
    "b0fee621"  # mov   $0xfe,%al; out %al,$0x21  mask all interrupts but IRQ 0
    "b0ffe6a1"  # mov   $0xff,%al; out %al,$0xa1
    "b034e643"  # mov   $0x34,%al; out %al,$0x43  timer 0, rate generator
    "b0a9e640"  # mov   $0xa9,%al; out %al,$0x40  every 0x4a9 = 1193 cycles: 1 kHz
    "b004e640"  # mov   $0x04,%al; out %al,$0x40
    "fb"  # sti
    "f4"  # idle: hlt
    "ebfd"  # jmp   idle
    "50"  # handler (0x49): push %ax
    "668306008001"  # addl  $1,0x8000
    "668316048000"  # adcl  $0,0x8004
    "b020e620"  # mov   $0x20,%al; out %al,$0x20  end of interrupt
    "58"  # pop   %ax
    "cf"  # iret
)
# "spin" does nothing else, for measuring pauses finer than a millisecond.
_SPIN = bytes.fromhex(
    "fa"  # cli
    "31c0"  # xor   %ax,%ax
    "8ed8"  # mov   %ax,%ds
    "668306008001"  # next: addl $1,0x8000
    "668316048000"  # adcl  $0,0x8004
    "ebf2"  # jmp   next
)
# "write" also writes to each page of 64 MiB in turn, in flat 32-bit mode: what a live migration has to run after.
WRITTEN_FROM, WRITTEN_TO = 16 << 20, 80 << 20
_WRITE = bytes.fromhex(
    "fa"  # cli
    "2e660f01164400"  # lgdtl %cs:table
    "0f20c0"  # mov   %cr0,%eax
    "0c01"  # or    $1,%al              protected mode
    "0f22c0"  # mov   %eax,%cr0
    "66ea18000f000800"  # ljmpl $8,$0xf0018       to the next instruction
    "66b81000"  # mov   $0x10,%ax
    "8ed8"  # mov   %eax,%ds
    "bb00000001"  # first: mov $0x1000000,%ebx  WRITTEN_FROM
    "83050080000001"  # next: addl $1,0x8000
    "83150480000000"  # adcl  $0,0x8004
    "830301"  # addl  $1,(%ebx)
    "81c300100000"  # add   $0x1000,%ebx
    "81fb00000005"  # cmp   $0x5000000,%ebx        WRITTEN_TO
    "72e1"  # jb    next
    "ebda"  # jmp   first
    "17004a000f00"  # table (0x44): 3 segments, at 0xf004a
    "0000000000000000"
    "ffff0000009bcf00"  # 0x08: code, all 4 GiB, accessed already, because ROM cannot note it
    "ffff00000093cf00"  # 0x10: data, the same
)
_GUESTS = {"tick": _TICK, "spin": _SPIN, "write": _WRITE}
_FIRMWARE_BYTES = 1 << 16
_RESET_VECTOR = bytes.fromhex("ea000000f0")  # ljmp $0xf000,$0
_DISK_BYTES = 1 << 20


class LocalQemu:
    """One running QEMU with the counting guest. Ends by ``stop``; see ``start_qemu`` for the usual way to have one."""

    def __init__(
        self,
        binary: Path,
        directory: Path,
        *,
        accel: str | None,
        name: str = "vm",
        machine: str = "q35",
        memory_mib: int = 64,
        shared_ram: bool = True,
        aux_ram_share: bool = True,
        guest: str | None = "tick",
        counter_offset: int = COUNTER_OFFSET,
        qmp: Sequence[str] | None = None,
        extra: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        wrapper: Sequence[str] = (),
        like: Path | None = None,
        disk_owner: int = -1,
    ) -> None:
        """Start it and return as soon as its monitor answers (with ``qmp=()`` or other arguments: as soon as it runs).

        ``directory`` is made if need be and holds ``qmp.sock``, ``boot.img``, ``guest.bin`` and ``log``.
        ``accel``: None for one that ``extra`` chooses.
        ``guest``: None for one that ``extra`` boots; ``counter_offset``: where in RAM it counts.
        ``extra``: further arguments.
        ``pass_fds``: descriptors of ours it inherits. ``wrapper``: command to run it under; must execute it in place.
        ``like``: for a copied binary, the one it was copied from, whose firmware it takes.
        ``disk_owner``: uid and gid that get the disk.
        Raises ``AssertionError`` with QEMU's words when it does not come up.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.directory = directory
        self.binary = binary
        self.log_path = directory / "log"
        self.disk_path = directory / "boot.img"
        self.qmp_path = str(directory / "qmp.sock")
        self.memory_bytes = memory_mib << 20
        self._ram: mmap.mmap | None = None
        self._shared_ram = shared_ram
        self.disk_path.write_bytes(bytes(_DISK_BYTES))
        self._counter_offset = counter_offset
        os.chown(self.disk_path, disk_owner, disk_owner)
        self.argv = [
            *(str(binary), *firmware(like or binary), "-name", f"guest={name}"),
            *("-machine", machine + _ram_options(shared_ram, aux_ram_share), "-m", f"{memory_mib}M"),
            *(() if accel is None else ("-accel", accel)),
            *_memory_backend(memory_mib, shared_ram),
            *("-nodefaults", "-display", "none", *_bios(guest, directory)),
            *("-drive", f"if=none,id=boot,format=raw,file={self.disk_path}"),
            *("-device", "virtio-blk-pci,id=disk0,drive=boot"),
            *(("-qmp", f"unix:{self.qmp_path},server=on,wait=off") if qmp is None else qmp),
            *extra,
        ]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, *self.argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds
            )
        self.pid = self.process.pid
        try:
            self._await_start(monitor=qmp is None)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> LocalQemu:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def monitor(self, timeout_s: float = 5.0) -> QmpClient:
        """Return a new session on the VM's monitor, whichever process serves the path now."""
        return QmpClient.connect(self.qmp_path, timeout_s)

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one QMP command in a session of its own."""
        with self.monitor() as client:
            return client.execute(command, arguments)

    def counter(self) -> int:
        """Return the guest's counter, read through ``/proc/PID/fd``; works on after the process has handed over."""
        return int(struct.unpack("<Q", self.read_ram(self._counter_offset, 8))[0])

    def read_ram(self, offset: int, size: int) -> bytes:
        """Return bytes of the guest's RAM, by the same way."""
        assert self._ram is not None, "only a guest with shared RAM can be watched"
        return self._ram[offset : offset + size]

    def wait_counting(self, more: int = 20) -> int:
        """Return the counter once it has advanced by ``more`` from now: the guest runs."""
        first = self.counter()
        _await(
            lambda: self.counter() >= first + more, _COUNT_S, lambda: f"the guest does not count: {self._last_words()}"
        )
        return self.counter()

    def let_go_of_ram(self) -> None:
        """Watch the counter no more: as long as we map the RAM, it outlives the processes that had it."""
        if self._ram is not None:
            self._ram.close()
            self._ram = None

    def assert_not_counting(self, for_s: float = 0.2) -> None:
        """Assert that the guest stands still. The time only bounds how hard we look."""
        first = self.counter()
        time.sleep(for_s)
        assert self.counter() == first, "the guest counts though it should stand still"

    def suspend(self) -> None:
        """SIGSTOP the process and return when it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _await(lambda: _state(self.pid) == "T", _START_S, lambda: "the process does not stop")

    def stop(self) -> None:
        """Kill and reap the process we started. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.let_go_of_ram()

    def _await_start(self, monitor: bool) -> None:
        if self._shared_ram:
            _await(lambda: self._alive() and self._map_ram(), _START_S, self._last_words)
        if monitor:
            _await(lambda: self._alive() and self._greets(), _START_S, self._last_words)

    def _alive(self) -> bool:
        assert self.process.poll() is None, self._last_words()
        return True

    def _greets(self) -> bool:
        try:
            self.monitor(_START_S).close()
        except QmpDeadError:
            return False
        return True

    def _map_ram(self) -> bool:
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if "memory-backend-memfd" in os.readlink(link) and link.stat().st_size == self.memory_bytes:
                    with open(link, "rb") as ram:
                        self._ram = mmap.mmap(ram.fileno(), self.memory_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
                    return True
            except FileNotFoundError:
                continue  # closed meanwhile
        return False

    def _last_words(self) -> str:
        return f"{self.binary} ({self.name}) exit={self.process.poll()}: {self.log_path.read_text(errors='replace')[-2000:]}"


class QemuFactory:
    """Starts QEMUs below one directory, and at the end kills them and every process a test made with their files."""

    def __init__(self, directory: Path, binary: Path, accel: str) -> None:
        """``binary`` and ``accel`` are what a VM gets when the test does not say."""
        self._directory = directory
        self._binary = binary
        self._accel = accel
        self._running: list[LocalQemu] = []

    def __call__(self, name: str = "vm", binary: Path | None = None, **options: Any) -> LocalQemu:
        """Start a VM called ``name``; ``options`` are those of ``LocalQemu``."""
        options.setdefault("accel", self._accel)
        qemu = LocalQemu(binary or self._binary, self._directory / name, name=name, **options)
        self._running.append(qemu)
        return qemu

    def close(self) -> None:
        """End everything: the VMs, and processes that took over their guests (they name our directory)."""
        for qemu in self._running:
            qemu.stop()
        for pid in _processes_naming(self._directory):
            _kill(pid)


def qemu_binary(series: str, stock: bool = False) -> Path:
    """Return a QEMU of ``series`` ("10.2"): what ``VMM_TEST_QEMU_10_2`` names, else the artifact built last.

    ``stock``: one without our patches, ``VMM_STOCK_QEMU_10_2`` or the stock artifact built last. Artifacts are looked for
    in the cache, and unpacked there once. Raises ``AssertionError`` when there is none.
    """
    variable = f"VMM_{'STOCK' if stock else 'TEST'}_QEMU_{series.replace('.', '_')}"
    if os.environ.get(variable):
        return Path(os.environ[variable]).resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vmm-live-upgrade"
    built = cache / ("stock-artifacts" if stock else "artifacts")
    artifacts = sorted(built.glob(f"qemu-{series}.*.tar.gz"), key=lambda path: path.stat().st_mtime)
    assert artifacts, f"no QEMU {series} in {built}: have tests/tools/builds.py build it, or name one in {variable}"
    return _unpacked(artifacts[-1], cache / "test-builds") / "bin" / "qemu-system-x86_64"


def marked_copy(binary: Path, target: Path, build_id: str) -> Path:
    """Copy ``binary`` to ``target`` so that its processes are known as ``build_id``; return ``target``.

    The text that names the build is overwritten; a binary that was not built here gets one behind its last section, which
    does not disturb the loader. A copy does not lie beside its firmware: see ``firmware``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f"vmm.live_upgrade build {build_id}".encode()
    image = binary.read_bytes()
    own = set(re.findall(rb"vmm\.live_upgrade build qemu-[0-9.]+-[0-9a-f]{16}", image))
    for text in own:
        assert len(text) == len(mark), f"{text!r} cannot be overwritten by {mark!r}"
        image = image.replace(text, mark)
    target.write_bytes(image if own else image + b"\0" + mark + b"\0")
    shutil.copymode(binary, target)
    return target


def firmware(binary: Path) -> list[str]:
    """Return ``-L`` arguments for ``binary``: the firmware of its prefix where it has one, else of this machine."""
    own = binary.resolve().parent.parent / "share" / "qemu"
    if own.is_dir():
        return ["-L", str(own)]
    folders = os.environ.get("VMM_TEST_FIRMWARE", "/usr/share/seabios:/usr/share/qemu:/usr/lib/ipxe/qemu")
    return [argument for folder in folders.split(":") for argument in ("-L", folder)]


@functools.cache
def working_accel(binary: Path) -> str:
    """Return ``kvm`` when a guest really runs under it here, else ``tcg``. ``VMM_TEST_ACCEL`` overrides."""
    forced = os.environ.get("VMM_TEST_ACCEL")
    if forced:
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory() as directory:
        try:
            with LocalQemu(binary, Path(directory), accel="kvm", name="probe") as qemu:
                qemu.wait_counting()
        except AssertionError:
            return "tcg"
    return "kvm"


def _bios(guest: str | None, directory: Path) -> list[str]:
    if guest is None:
        return []
    path = directory / "guest.bin"
    path.write_bytes(_GUESTS[guest].ljust(_FIRMWARE_BYTES - 16, b"\0") + _RESET_VECTOR.ljust(16, b"\0"))
    return ["-bios", str(path)]


def _ram_options(shared_ram: bool, aux_ram_share: bool) -> str:
    return ",memory-backend=ram0" * shared_ram + ",aux-ram-share=on" * aux_ram_share


def _memory_backend(memory_mib: int, shared_ram: bool) -> list[str]:
    return ["-object", f"memory-backend-memfd,id=ram0,size={memory_mib}M,share=on"] if shared_ram else []


def _unpacked(artifact: Path, folder: Path) -> Path:
    """Unpack once; several test runs may do so at a time, the first rename wins."""
    target = folder / artifact.name.replace(".tar.gz", "")
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder))
        subprocess.run(["tar", "-C", temporary, "-xzf", artifact], check=True)
        try:
            temporary.rename(target)
        except OSError:
            assert target.is_dir(), f"cannot unpack {artifact} to {target}"
            shutil.rmtree(temporary)
    return target


def _await(condition: Callable[[], Any], timeout_s: float, why: Callable[[], str]) -> None:
    """Poll ``condition``: what is awaited (a word in RAM, another process's socket) sends no event."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(_POLL_S)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _processes_naming(directory: Path) -> list[int]:
    needle = os.fsencode(f"{directory}/")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "cmdline").read_bytes() and b"qemu" in os.fsencode(os.readlink(entry / "exe")):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def _kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], _START_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
