# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One ssh session to a host, with a channel to each UNIX socket there that is asked for. PRIVATE to the collection.

The only file that knows paramiko.
"""

from __future__ import annotations

import base64
import binascii
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

try:
    import paramiko
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
except ImportError:  # then nothing is watched, which is told before this file is needed; but it can be looked at
    paramiko = None  # type: ignore[assignment]

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import (
    ACCEPT_ANY,
    KNOWN_ONLY,
    SshSettings,
)

if TYPE_CHECKING:
    Channel = paramiko.Channel
    _TransportBase = paramiko.Transport
    _PolicyBase = paramiko.MissingHostKeyPolicy
else:
    Channel = getattr(paramiko, "Channel", object)
    _TransportBase = getattr(paramiko, "Transport", object)
    _PolicyBase = getattr(paramiko, "MissingHostKeyPolicy", object)

_STREAMLOCAL = "direct-streamlocal@openssh.com"
_MSG_CHANNEL_OPEN = b"\x5a"  # RFC 4254
_SSH_PORT = 22
_RSA = "ssh-rsa"
# paramiko has no exception of its own for it.
_NOTHING_TO_SHOW = "No authentication methods available"
_ENVIRONMENT = threading.Lock()


class SessionError(LiveUpgradeError):
    """The session could not be made, or broke. It may work later."""


class SessionRefused(LiveUpgradeError):
    """The host is not the one that is known, or does not let us in. To try again would only lock us out."""


class SocketRefused(LiveUpgradeError):
    """The session is well, but the host did not connect us to the socket."""


class Session:
    """An open session. Not thread-safe."""

    def __init__(self, settings: SshSettings) -> None:
        """Connect and log in, as Ansible would. Raises ``SessionError`` and ``SessionRefused``."""
        self._timeout_s = settings.timeout_s
        self._client = paramiko.SSHClient()
        try:
            self._connect(settings)
        except paramiko.AuthenticationException as exc:
            self.close()
            raise SessionRefused(f"{settings.user}@{settings.address}: {exc}") from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            self.close()
            if str(exc) == _NOTHING_TO_SHOW:
                raise SessionRefused(
                    f"{settings.user}@{settings.address}: no key, agent or password to log in with"
                ) from exc
            raise SessionError(f"{settings.address} port {settings.port}: {exc or type(exc).__name__}") from exc
        except BaseException:
            self.close()
            raise

    def open_socket(self, path: str) -> Channel:
        """Return a channel to the UNIX socket ``path`` of the host. Raises ``SocketRefused`` and ``SessionError``."""
        transport = self._client.get_transport()
        if not isinstance(transport, _Transport) or not transport.is_active():
            raise SessionError("the session has ended")
        try:
            channel = transport.open_streamlocal(path, self._timeout_s)
        except paramiko.ChannelException as exc:
            raise SocketRefused(
                f"sshd does not connect us to {path} ({exc.text or exc.code}): nobody listens there, this user may not, or "
                "AllowStreamLocalForwarding is off"
            ) from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise SessionError(str(exc) or type(exc).__name__) from exc
        channel.setblocking(0)
        return channel

    def check(self) -> None:
        """Make sure that the host answers. Raises ``SessionError``.

        A channel is opened and closed again: nothing is run, and there is no other request that has to be answered.
        """
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise SessionError("the host closed the session")
        try:
            transport.open_session(timeout=self._timeout_s).close()
        except paramiko.ChannelException:
            return  # refused, so somebody answers
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise SessionError(str(exc) or type(exc).__name__) from exc

    @property
    def is_active(self) -> bool:
        """Whether the session has not ended, as far as is known here."""
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def close(self) -> None:
        """Close it with all its channels. Idempotent."""
        self._client.close()

    def _connect(self, settings: SshSettings) -> None:
        sock: socket.socket | paramiko.ProxyCommand | None = None
        if settings.proxy_command:
            sock = paramiko.ProxyCommand(settings.proxy_command)
        elif settings.alias:
            sock = socket.create_connection((settings.address, settings.port), settings.timeout_s)
        check = _HostKeyCheck(settings)
        self._client.set_missing_host_key_policy(check)
        name = settings.alias or (
            settings.address if settings.port == _SSH_PORT else f"[{settings.address}]:{settings.port}"
        )
        with _agent_of(settings):
            self._client.connect(
                # paramiko makes the name of the host's key of these two.
                settings.alias or settings.address,
                _SSH_PORT if settings.alias else settings.port,
                settings.user,
                settings.password or None,
                # Several are documented, its types know of one.
                key_filename=[path for path in settings.identity_files if os.path.isfile(path)],  # type: ignore[arg-type]
                allow_agent=bool(settings.agent) and not settings.only_these_identities,
                look_for_keys=False,
                sock=sock,
                timeout=settings.timeout_s,
                banner_timeout=settings.timeout_s,
                auth_timeout=settings.timeout_s,
                transport_factory=lambda *given, **named: _transport(check.types(name), *given, **named),
            )


class _Transport(_TransportBase):
    """A transport that can open channels to UNIX sockets, which paramiko has no call for."""

    _path: str | None = None

    def open_streamlocal(self, path: str, timeout_s: float) -> Channel:
        """Open a channel to the socket ``path`` of the host. Raises ``paramiko.SSHException``."""
        self._path = path
        try:
            return self.open_channel(_STREAMLOCAL, timeout=timeout_s)
        finally:
            self._path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        """``open_channel`` knows nothing to say of a channel of this kind: the path, and two reserved fields."""
        if self._path is not None and data.asbytes().startswith(_OPEN_STREAMLOCAL):
            data.add_string(self._path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]  # its types leave it out


def _transport(types: list[str], *given: Any, **named: Any) -> _Transport:
    """Make a transport that asks for a host key of ``types`` first."""
    transport = _Transport(*given, **named)
    options = transport.get_security_options()
    # Of an RSA key there are signatures of several kinds.
    first = [kind for kind in options.key_types if (_RSA if "rsa" in kind else kind) in types]
    options.key_types = [*first, *(kind for kind in options.key_types if kind not in first)]
    return transport


_OPEN_STREAMLOCAL = _MSG_CHANNEL_OPEN + struct.pack(">I", len(_STREAMLOCAL)) + _STREAMLOCAL.encode()


class _HostKeyCheck(_PolicyBase):
    """Checks the host's key by the files that ssh checks it by. The client itself is given none, so each key comes here."""

    def __init__(self, settings: SshSettings) -> None:
        self._trust = settings.host_keys
        self._files = [path for path in settings.known_hosts if os.path.isfile(path)]
        self._known = paramiko.HostKeys()
        self._revoked: set[bytes] = set()
        for path in [] if self._trust == ACCEPT_ANY else self._files:
            _read_known_hosts(path, self._known, self._revoked)

    def types(self, hostname: str) -> list[str]:
        """Return the types of the keys that are known of a host: to ask for another would be to meet an unknown key."""
        return list(self._known.lookup(hostname) or {})

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Raise ``SessionRefused`` unless ssh would trust the key. One that is new is not kept: that is left to ssh."""
        if self._trust == ACCEPT_ANY:
            return
        told = f"the host key of {hostname} ({key.get_name()} {key.fingerprint})"
        if key.asbytes() in self._revoked:
            raise SessionRefused(f"{told} was revoked")
        known = self._known.lookup(hostname)
        if known is None and self._trust == KNOWN_ONLY:
            raise SessionRefused(
                f"{told} is not in {', '.join(self._files) or 'any file of known hosts'}. ssh may know it by a pattern or a "
                "certificate, which the watcher does not read; add the key itself to have the host watched"
            )
        if known is not None and all(key != one for one in known.values()):
            raise SessionRefused(f"{told} is not the one that is known")


def _read_known_hosts(path: str, known: paramiko.HostKeys, revoked: set[bytes]) -> None:
    """Add what a file of known hosts says. A key that it revokes is so for all hosts, whatever pattern stands with it.

    paramiko's own reading of a file stops at the first marker.
    """
    with open(path, encoding="utf-8", errors="replace") as stream:
        for words in (line.split() for line in stream):
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
                continue
            # What cannot be read is passed over, as by ssh; the host is then unknown.
            with suppress(binascii.Error, ValueError, paramiko.SSHException, InvalidHostKey):
                if marker:
                    revoked.add(base64.b64decode(words[2]))
                elif entry := HostKeyEntry.from_line(" ".join(words[:3])):
                    for name in entry.hostnames or []:
                        known.add(name, entry.key.get_name(), entry.key)


@contextmanager
def _agent_of(settings: SshSettings) -> Iterator[None]:
    """paramiko finds an agent by the environment alone, which all sessions of this process share."""
    if not settings.agent:
        yield
        return
    with _ENVIRONMENT:
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = settings.agent
        try:
            yield
        finally:
            if before is None:
                del os.environ["SSH_AUTH_SOCK"]
            else:
                os.environ["SSH_AUTH_SOCK"] = before
