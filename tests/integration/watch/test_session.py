# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session to a real sshd: whom it trusts, what it shows, and the channels to sockets that paramiko has no call for."""

from __future__ import annotations

import shlex
import socket
import time
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.session import (
    Channel,
    Session,
    SessionError,
    SessionRefused,
    SocketRefused,
)
from ansible_collections.vmm.live_upgrade.tests.integration.watch.running_watcher import settings_for
from ansible_collections.vmm.live_upgrade.tests.integration.watch.sshd import Sshd


def received(channel: Channel) -> bytes:
    """Return what comes first."""
    channel.settimeout(60)
    return bytes(channel.recv(100))


@pytest.mark.parametrize(
    ("known", "trust", "refused"),
    [
        pytest.param("{name} {key}", "known", "", id="known"),
        pytest.param("", "known", "is not in", id="unknown"),
        pytest.param("", "new", "", id="unknown-but-new-ones-are-accepted"),
        pytest.param("{name} {other}", "known", "is not the one that is known", id="changed"),
        pytest.param("{name} {other}", "new", "is not the one that is known", id="changed-where-new-ones-are-accepted"),
        pytest.param("{name} {other}", "any", "", id="changed-where-nothing-is-checked"),
        pytest.param("{name} {key}\n@revoked * {key}", "known", "was revoked", id="revoked"),
        pytest.param("@revoked * {key}", "new", "was revoked", id="revoked-where-new-ones-are-accepted"),
        pytest.param("{name} ssh-ed25519 AAAA\n# {key}\n{name} {key} me", "known", "", id="lines-that-cannot-be-read"),
        pytest.param("@cert-authority * {key}", "known", "by a pattern or a certificate", id="by-certificate"),
    ],
)
def test_trusts_a_host_as_ssh_would(sshd: Sshd, known: str, trust: str, refused: str) -> None:
    key = sshd.public_host_key
    text = known.format(name=f"[127.0.0.1]:{sshd.port}", key=key, other=f"{key[:-8]}AAAAAAAA")
    sshd.known_hosts.write_text(text)
    settings = settings_for(sshd, host_keys=trust)

    if refused:
        with pytest.raises(SessionRefused, match=refused):
            Session(settings)
    else:
        Session(settings).close()
    assert sshd.known_hosts.read_text() == text, "no key is ever added"


def test_knows_a_host_by_its_alias(sshd: Sshd) -> None:
    sshd.known_hosts.write_text(f"rack7 {sshd.public_host_key}\n")

    Session(settings_for(sshd, alias="rack7")).close()


def test_goes_through_a_proxy(sshd: Sshd) -> None:
    script = (
        "import socket,sys,threading as t,os;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
        "t.Thread(target=lambda:[s.sendall(d) for d in iter(lambda:os.read(0,65536),b'')],daemon=True).start();"
        "[os.write(1,d) for d in iter(lambda:s.recv(65536),b'')]"
    )
    session = Session(settings_for(sshd, proxy_command=shlex.join(["python3", "-c", script, str(sshd.port)])))

    session.check()
    session.close()


def test_without_anything_to_log_in_with_it_says_so(sshd: Sshd) -> None:
    with pytest.raises(SessionRefused, match="no key, agent or password"):
        Session(settings_for(sshd, identity_files=[]))


def test_connects_to_a_socket_both_ways(sshd: Sshd, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    session = Session(settings_for(sshd))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        channel = session.open_socket(path)
        peer, _address = listener.accept()
        with peer:
            peer.sendall(b"hello")
            assert received(channel) == b"hello"
            channel.sendall(b"you")
            assert peer.recv(100) == b"you"
        assert received(channel) == b""
    session.close()


def test_a_socket_that_nobody_serves_leaves_the_session_well(sshd: Sshd, tmp_path: Path) -> None:
    session = Session(settings_for(sshd))

    with pytest.raises(SocketRefused, match="nobody listens there"):
        session.open_socket(str(tmp_path / "nobody"))
    session.check()
    session.close()


def test_an_end_is_noticed(sshd: Sshd) -> None:
    session = Session(settings_for(sshd))
    sshd.kill()

    deadline = time.monotonic() + 60
    with pytest.raises(SessionError):
        while time.monotonic() < deadline:
            session.check()
    with pytest.raises(SessionError):
        Session(settings_for(sshd))
