# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel that runs: what it is, and its modules. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import information_in

_UNPACKED: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}
_LOG_LINES = 4
# EKEYREJECTED, as insmod says it
_UNKNOWN_SIGNER = "Key was rejected by service"


class Kernel:
    """``root`` is ``/``, or a folder with a tree like it of which the kernel is told about (for tests)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    @property
    def release(self) -> str:
        """What ``uname -r`` says."""
        return (self.root / "proc/sys/kernel/osrelease").read_text().strip()

    def vermagic(self) -> str | None:
        """Return the vermagic of the kernel's own modules; None when none of them can be read."""
        folder = self.root / "lib/modules" / self.release
        with contextlib.suppress(OSError, lzma.LZMAError):
            for line in (folder / "modules.dep").read_text().splitlines():
                path = folder / line.partition(":")[0]
                unpacked = _UNPACKED.get(path.suffix)
                if unpacked and line.startswith("kernel/"):  # not one that was added to it
                    return information_in(unpacked(path.read_bytes())).get("vermagic", "").strip() or None
        return None

    def signatures_wanted(self) -> str | None:
        """Return why modules without a signature are refused by this kernel; None when they are not."""
        with contextlib.suppress(OSError):
            lockdown = (self.root / "sys/kernel/security/lockdown").read_text()
            if "[" in lockdown and "[none]" not in lockdown:
                return f"the kernel is locked down ({lockdown.partition('[')[2].partition(']')[0]})"
        with contextlib.suppress(OSError):
            if (self.root / "sys/module/module/parameters/sig_enforce").read_text().strip() in ("Y", "1"):
                return "the kernel runs with module.sig_enforce"
        return None

    def loaded(self, name: str) -> bool:
        """Tell whether a module is loaded. One that is built in is not: it has no state."""
        return (self._sys(name) / "initstate").exists()

    def built_in(self, name: str) -> bool:
        """Tell whether what is a module elsewhere is part of this kernel."""
        return self._sys(name).is_dir() and not self.loaded(name)

    def version(self, name: str) -> str | None:
        """Return the version that a loaded module says it has."""
        return self._read(name, "version")

    def references(self, name: str) -> int:
        """Return how many references to a loaded module there are, by other modules too."""
        return int(self._read(name, "refcnt") or 0)

    def users(self, name: str) -> list[str]:
        """Return the modules that use a loaded module."""
        folder = self._sys(name) / "holders"
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def parameter(self, name: str, parameter: str) -> str:
        """Return a parameter of a loaded module, empty when it is not there."""
        return self._read(name, f"parameters/{parameter}") or ""

    def set_parameter(self, name: str, parameter: str, value: str) -> None:
        """Set a parameter of a loaded module. Raises ``LiveUpgradeError``."""
        try:
            (self._sys(name) / "parameters" / parameter).write_text(f"{value}\n")
        except OSError as exc:
            raise LiveUpgradeError(f"{parameter} of {name} cannot be set to {value}: {exc.strerror}") from exc

    def load(self, module: Path) -> None:
        """Load a module from its file. Raises ``LiveUpgradeError`` with what the kernel's log says of it."""
        try:
            self._run("insmod", str(module))
        except LiveUpgradeError as exc:
            if _UNKNOWN_SIGNER not in str(exc):
                raise
            raise LiveUpgradeError(
                f"{exc}: the kernel does not know the key that it is signed with, or it is not what was signed. Enrol the "
                "certificate of the key on this host (mokutil --import) and reboot, or build it with a key that the kernel "
                "knows (sign_key)"
            ) from exc

    def unload(self, name: str) -> None:
        """Unload a module that nobody uses. Raises ``LiveUpgradeError``."""
        self._run("rmmod", name)

    def probe(self, name: str) -> None:
        """Load a module of the distribution with all it needs. Raises ``LiveUpgradeError``."""
        self._run("modprobe", name)

    def _run(self, *command: str) -> None:
        with _new_messages() as messages:
            try:
                done = subprocess.run(
                    command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
                )
            except FileNotFoundError as exc:
                raise LiveUpgradeError(f"{command[0]} is not installed: install the package kmod") from exc
            if done.returncode == 0:
                return
            said = [done.stderr.strip() or f"status {done.returncode}", *messages()]
        raise LiveUpgradeError(f"{' '.join(command)} failed: {'; '.join(said)}")

    def _sys(self, name: str) -> Path:
        return self.root / "sys/module" / name

    def _read(self, name: str, file: str) -> str | None:
        try:
            return (self._sys(name) / file).read_text().strip()
        except OSError:
            return None


class _Messages:
    """What the kernel has written to its log since this was made."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self) -> list[str]:
        lines: list[str] = []
        while self._fd is not None:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except OSError:
                continue  # overwritten before it was read
            lines.append(record.partition(";")[2].splitlines()[0])
        return [f"kernel: {line}" for line in lines[-_LOG_LINES:]]


@contextlib.contextmanager
def _new_messages() -> Iterator[_Messages]:
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield _Messages(None)
        return
    try:
        os.lseek(fd, 0, os.SEEK_END)
        yield _Messages(fd)
    finally:
        os.close(fd)


def _environment() -> dict[str, str]:
    # Ansible's may lack the administrator's folders.
    return {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"}
