# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on a loopback port: that of the machine, or Debian's, unpacked and not installed, which would start one."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_PACKAGES = ("openssh-server", "libwrap0")
_START_S = 20.0
_POLL_S = 0.05


class Sshd:
    """The daemon of one test, with keys of its own, which lets in its user by key alone."""

    def __init__(self, folder: Path, cache: Path, *configuration: str) -> None:
        """``cache``: where a program that was unpacked is kept; ``configuration``: further lines, which hold before ours."""
        self._folder = folder
        self._program = _program(cache)
        folder.mkdir(parents=True)
        self.user = getpass.getuser()
        self.port = _free_port()
        self.key = new_key(folder / "user_key")
        self._host_key = new_key(folder / "host_key")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.public_host_key}\n")
        (folder / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        (folder / "sshd_config").write_text(
            "\n".join(
                [
                    *configuration,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self._host_key}",
                    f"PidFile {folder}/sshd.pid",
                    f"AuthorizedKeysFile {folder}/authorized_keys",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "PermitRootLogin prohibit-password",
                    "",
                ]
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def public_host_key(self) -> str:
        """Type and key."""
        return " ".join(self._host_key.with_suffix(".pub").read_text().split()[:2])

    def renew_host_key(self) -> None:
        """Become another host, at the same address."""
        for path in (self._host_key, self._host_key.with_suffix(".pub")):
            path.unlink()
        new_key(self._host_key)

    def start(self) -> None:
        """Start it and return when it listens."""
        log = self._folder / "sshd.log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [*_as_installed(self._folder), *self._program, "-D", "-e", "-f", str(self._folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        deadline = time.monotonic() + _START_S
        while True:  # there is no event that tells it
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(_POLL_S)

    def kill(self) -> None:
        """Kill it with all its sessions, as a host that loses its power would."""
        if self._process is None:
            return
        for pid in (*_descendants(self._process.pid), self._process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._process = None


def _program(cache: Path) -> list[str]:
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found:
        return [found]
    unpacked = cache / "sshd"
    if not (unpacked / "complete").exists():
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        unpacked.chmod(0o755)
        subprocess.run(["apt-get", "-q", "download", *_PACKAGES], cwd=unpacked, check=True, capture_output=True)
        for package in unpacked.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
        (unpacked / "complete").touch()
    library = next(unpacked.rglob("libwrap.so.0")).parent
    # sshd runs itself anew for each connection, by its absolute path and with its environment.
    return ["env", f"LD_LIBRARY_PATH={library}", str(unpacked / "usr" / "sbin" / "sshd")]


def _as_installed(folder: Path) -> list[str]:
    """Where root runs it, it wants a user and a folder that the package would make: it gets a view of its own that has them."""
    if os.geteuid() != 0:
        return []
    users = folder / "passwd"
    known = Path("/etc/passwd").read_text()
    users.write_text(known if "\nsshd:" in known else known + "sshd:x:74:65534::/run/sshd:/usr/sbin/nologin\n")
    script = 'mount --bind "$1" /etc/passwd && mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(users)]


def new_key(path: Path) -> Path:
    """Make a key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    """Its sessions, the youngest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found[::-1]
