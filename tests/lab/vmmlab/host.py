# SPDX-License-Identifier: GPL-3.0-or-later
"""One fleet host: its folder, its keys, its emulator process."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cpio import CpioArchive
from .emulator import Emulator, disk_argv, kernel_argv
from .image import HostImage
from .process import ProcessId, find_by_argument, identify
from .progress import LabError, Progress
from .ssh import SshAccess, banner, free_port, make_key
from .vmspec import Pace, VmSpec

BANNER_TRY_S = 15.0
STOP_GRACE_S = 5.0
DRIVE_BYTES = 8 << 20


@dataclass
class Host:
    """Host ``name`` with ``vm_count`` VMs, the last ``passthrough`` of them with a drive of its own; its files in ``folder``."""

    name: str
    folder: Path
    vm_count: int
    rack: str
    pace: Pace
    access: SshAccess
    process: ProcessId | None = None
    passthrough: int = 0

    @property
    def vms(self) -> list[VmSpec]:
        own_disk = self.vm_count - self.passthrough
        return [VmSpec(self.name, index, self.pace, index > own_disk) for index in range(1, self.vm_count + 1)]

    @property
    def console(self) -> Path:
        return self.folder / "console"

    @property
    def pid_file(self) -> Path:
        return self.folder / "qemu.pid"

    def to_dict(self) -> dict[str, Any]:
        process = self.process and [self.process.pid, self.process.start_ticks]
        return {
            "name": self.name,
            "vms": self.vm_count,
            "passthrough": self.passthrough,
            "rack": self.rack,
            "port": self.access.port,
            "process": process,
        }

    # ---- starting ----------------------------------------------------------------------------------------------

    def prepare(self, image: HostImage, authorized_key: str) -> str:
        """Make folder, keys and initial root. Returns the host's public key."""
        self.folder.mkdir(parents=True)
        public_key = make_key(self.folder / "host_key", f"lab host {self.name}")
        private_key = (self.folder / "host_key").read_bytes()
        own = _own_files(self.name, private_key, public_key, authorized_key, self.vms)
        (self.folder / "initrd").write_bytes(image.initrd.read_bytes() + own)
        (self.folder / "initrd").chmod(0o600)
        return public_key

    def start(self, emulator: Emulator, image: HostImage, cpus: int, memory_mib: int) -> ProcessId | None:
        """Make the overlay disk and start the emulator. None when its ssh port was taken by somebody else first.

        Raises LabError when the emulator does not start for another reason.
        """
        overlay = self.folder / "disk.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(overlay)]
        subprocess.run(command, check=True, capture_output=True)
        argv = [
            *emulator.argv(cpus, memory_mib), "-name", f"guest=lab-{self.name}",
            *kernel_argv(image, self.folder / "initrd", f"lab.host={self.name}"), *disk_argv(overlay, "qcow2"),
            "-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{self.access.port}-:22",
            "-device", "virtio-net-pci,netdev=net0,romfile=", *self._drives_argv(),
            "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
            "-pidfile", str(self.pid_file), "-daemonize",
        ]  # fmt: skip
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if "Could not set up host forwarding" in done.stderr:
            return None
        if done.returncode != 0:
            raise LabError(f"{self.name}: the emulator does not start: {done.stderr.strip()}")
        return identify(int(self.pid_file.read_text()))

    def drive(self, vm: VmSpec) -> Path:
        """What the drive that is passed through to ``vm`` holds."""
        return self.folder / f"{vm.name}.drive"

    def _drives_argv(self) -> list[str]:
        """Drives to pass through, and an IOMMU before them."""
        argv = []
        for vm in self.vms:
            if vm.passthrough:
                with open(self.drive(vm), "wb") as drive:
                    drive.truncate(DRIVE_BYTES)
                options = f"if=none,id={vm.name},file={self.drive(vm)},format=raw,cache=unsafe"
                argv += ["-drive", options]
                argv += ["-device", f"nvme,drive={vm.name},serial={vm.name},addr={vm.drive_slot:#x}"]
        return ["-device", "amd-iommu,intremap=on,xtsup=on,dma-remap=on", *argv] if argv else []

    def move_to_free_port(self) -> None:
        self.access = replace(self.access, port=free_port())

    def wait_for_ssh(self, limit_s: float, progress: Progress) -> None:
        """Until the host's ssh server greets and lets the lab in. Raises LabError with the console's end."""
        deadline = time.monotonic() + limit_s
        while not banner(self.access.port, BANNER_TRY_S):
            if not self.alive():
                raise LabError(f"{self.name}: the emulator ended before ssh answered\n{self.console_tail()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: no ssh within {limit_s:.0f} s\n{self.console_tail()}")
            progress.say(f"{self.name}: still booting")
        done = self.access.run("true", timeout_s=max(30.0, deadline - time.monotonic()))
        if done.returncode != 0:
            raise LabError(f"{self.name}: ssh greets but refuses: {done.stderr.strip()}\n{self.console_tail()}")

    # ---- looking and ending ------------------------------------------------------------------------------------

    def alive(self) -> bool:
        return self.process is not None and self.process.alive()

    def stop(self) -> None:
        """End the emulator and the ssh connection to it. Other processes with its number are left alone."""
        self.access.close()
        if self.process is not None:
            self.process.stop(STOP_GRACE_S)
        for left in find_by_argument(str(self.pid_file)):  # a lab killed before it could note the number
            left.stop(STOP_GRACE_S)

    def resident_mib(self) -> int:
        """Memory the emulator holds; 0 when it does not run."""
        if self.process is None or not self.alive():
            return 0
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    def console_tail(self, lines: int = 25) -> str:
        """The end of the host's console, for an error message."""
        if not self.console.exists() or not self.console.stat().st_size:
            return f"({self.name} has said nothing)"
        tail = self.console.read_text(errors="replace").splitlines()[-lines:]
        return f"--- end of {self.name}'s console\n" + "\n".join(tail)


def _own_files(name: str, private_key: bytes, public_key: str, authorized_key: str, vms: list[VmSpec]) -> bytes:
    """An archive behind the common initial root; what is in ``overlay/`` is laid over the host's disk."""
    archive = CpioArchive()
    archive.folder("overlay/root", 0o755)
    archive.folder("overlay/root/.ssh", 0o700)
    archive.file("overlay/root/.ssh/authorized_keys", f"{authorized_key}\n".encode(), 0o600)
    archive.file("overlay/etc/hostname", f"{name}\n".encode())
    archive.file("overlay/etc/hosts", f"127.0.0.1 localhost {name}\n".encode())
    archive.file("overlay/etc/machine-id", f"{secrets.token_hex(16)}\n".encode(), 0o444)
    archive.file("overlay/etc/ssh/ssh_host_ed25519_key", private_key, 0o600)
    archive.file("overlay/etc/ssh/ssh_host_ed25519_key.pub", f"{public_key}\n".encode())
    archive.folder("overlay/etc/vmm-lab")
    for vm in vms:
        archive.file(f"overlay/etc/vmm-lab/{vm.name}.args", "".join(f"{part}\n" for part in vm.argv()).encode())
        wanted = f"overlay/etc/systemd/system/multi-user.target.wants/{vm.unit}"
        archive.symlink(wanted, "/etc/systemd/system/vmm-lab-vm@.service")
    return archive.data()
