# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh to lab hosts: keys the lab makes itself, host keys it knows before the host boots, nothing ignored."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

REFUSED_PAUSE_S = 0.5


@dataclass(frozen=True)
class SshAccess:
    """How to reach one host."""

    port: int
    key: Path
    known_hosts: Path
    control_path: Path

    def options(self) -> list[str]:
        """Options as ssh takes them, also what the inventory hands to Ansible."""
        settings = {
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "30",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ControlMaster": "auto",
            "ControlPersist": "300",
            "ControlPath": self.control_path,
        }
        return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def command(self, *remote: str) -> list[str]:
        """ssh command line; ``remote`` is joined by blanks and read by the host's shell."""
        target = ["-F", "/dev/null", "-i", str(self.key), "-p", str(self.port), *self.options(), "root@127.0.0.1"]
        return ["ssh", *target, *(["--", *remote] if remote else [])]

    def run(self, *remote: str, stdin: str = "", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run and capture. Raises subprocess.TimeoutExpired."""
        return subprocess.run(self.command(*remote), input=stdin, capture_output=True, text=True, timeout=timeout_s)

    def close(self) -> None:
        """End the master connection, if there is one."""
        if self.control_path.exists():
            command = ["ssh", "-F", "/dev/null", "-O", "exit", "-o", f"ControlPath={self.control_path}", "127.0.0.1"]
            subprocess.run(command, capture_output=True, timeout=20)


def make_key(path: Path, comment: str) -> str:
    """Make an ed25519 key without passphrase at ``path``; returns its public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path.with_name(path.name + ".pub").read_text().strip()


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on now. Somebody else may take it: its user must cope."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def banner(port: int, limit_s: float) -> str:
    """The greeting of the ssh server; "" when there is none within ``limit_s``.

    QEMU accepts connections before the host has a server, so that a connection alone means nothing: it is kept until
    the server speaks, and made anew when the host refuses it.
    """
    deadline = time.monotonic() + limit_s
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(("127.0.0.1", port), left_s) as stream:
                stream.settimeout(left_s)
                data = stream.recv(64)
        except OSError:
            data = b""
        if data.startswith(b"SSH-2.0"):
            return data.decode(errors="replace").strip()
        time.sleep(min(REFUSED_PAUSE_S, max(0.0, deadline - time.monotonic())))
    return ""
