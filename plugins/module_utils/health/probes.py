# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions put to a VM from the host: over the network, to its agent, by a command. PRIVATE to the collection.

Each returns an ``Answer`` and raises nothing for a VM that does not answer well.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence

from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.judge import Answer

_RETRY_PAUSE_S = 0.1
_OUTPUT_CHARS = 300
_ECHO = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)}


def ping(address: str, timeout_s: float) -> Answer:
    """Send ICMP echo requests to an IP address until one is answered. Needs no ping program on the host."""
    try:
        target = ipaddress.ip_address(address)
    except ValueError:
        return Answer(False, f"ping: {address!r} is not an IP address")
    return _until(lambda left_s: _echo(target, min(1.0, left_s)), timeout_s, f"ping {address}")


def tcp(host: str, port: int, timeout_s: float) -> Answer:
    """Connect to a TCP port until it accepts."""

    def attempt(left_s: float) -> str:
        with socket.create_connection((host, port), timeout=left_s):
            return "connected"

    return _until(attempt, timeout_s, f"tcp {host}:{port}")


def guest_agent(path: str, timeout_s: float) -> Answer:
    """Ping the QEMU guest agent behind a UNIX socket, after a sync that drops what an earlier client left unread."""
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(path)
            marker = secrets.randbits(31)
            _agent_send(sock, "guest-sync-delimited", {"id": marker}, b"\xff")
            stream = b""
            while True:
                answer, stream = _agent_line(sock, stream, deadline)
                if answer.get("return") == marker:
                    break
            _agent_send(sock, "guest-ping", {}, b"")
            answer, stream = _agent_line(sock, stream, deadline)
    except (OSError, ValueError) as exc:
        return Answer(False, f"guest agent at {path}: {exc}")
    return Answer(
        "return" in answer, f"guest agent at {path}: {'answered' if 'return' in answer else answer.get('error')}"
    )


def command(argv: Sequence[str], timeout_s: float) -> Answer:
    """Run ``argv`` on the host, without a shell; exit status 0 is healthy."""
    try:
        done = subprocess.run(  # the operator's own command, from the inventory
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(False, f"command {argv[0]} did not end within {timeout_s:g} s")
    except OSError as exc:
        return Answer(False, f"command {argv[0]} could not be started: {exc.strerror}")
    said = (done.stderr or done.stdout).decode(errors="replace").strip()[-_OUTPUT_CHARS:]
    return Answer(done.returncode == 0, f"command {argv[0]} exited with {done.returncode}{f': {said}' if said else ''}")


def _until(attempt: Callable[[float], str], timeout_s: float, what: str) -> Answer:
    """Repeat ``attempt(seconds left)`` until it does not raise ``OSError``; the last error is the answer at the time-out."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return Answer(True, f"{what}: {attempt(max(0.01, deadline - time.monotonic()))}")
        except OSError as exc:
            if time.monotonic() + _RETRY_PAUSE_S >= deadline:
                return Answer(False, f"{what}: {exc}")
            time.sleep(_RETRY_PAUSE_S)  # a refusal comes at once, and nothing tells when it would be another


def _echo(target: ipaddress.IPv4Address | ipaddress.IPv6Address, timeout_s: float) -> str:
    family, protocol, request_type, reply_type = _ECHO[target.version]
    identifier, payload = os.getpid() & 0xFFFF, secrets.token_bytes(16)
    packet = struct.pack("!BBHHH", request_type, 0, 0, identifier, 1) + payload
    if target.version == 4:
        packet = packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
    deadline = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(packet, (str(target), 0))
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data, sender = sock.recvfrom(2048)
            body = data[(data[0] & 0x0F) * 4 :] if target.version == 4 else data
            if body[:1] == bytes([reply_type]) and body[8:] == payload and sender[0] == str(target):
                return "answered"
            if time.monotonic() >= deadline:
                raise socket.timeout("timed out")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _agent_send(sock: socket.socket, execute: str, arguments: dict[str, int], prefix: bytes) -> None:
    request: dict[str, object] = {"execute": execute}
    if arguments:
        request["arguments"] = arguments
    sock.sendall(prefix + json.dumps(request).encode() + b"\n")


def _agent_line(sock: socket.socket, stream: bytes, deadline: float) -> tuple[dict[str, object], bytes]:
    while b"\n" not in stream:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(4096)
        if not data:
            raise OSError("it closed the connection")
        stream += data
    line, _newline, rest = stream.partition(b"\n")
    answer = json.loads(line.rpartition(b"\xff")[2] or b"{}")
    return (answer if isinstance(answer, dict) else {}), rest
