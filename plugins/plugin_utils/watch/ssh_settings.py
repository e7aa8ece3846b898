# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Ansible reaches a host by ssh, for a session of our own: the same address, user, keys, known hosts and proxy.

Ansible's connection plugin knows the inventory, OpenSSH knows its own configuration: ``ssh -G`` says what both come to.
PRIVATE to the collection.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

ACCEPT_ANY, ACCEPT_NEW, KNOWN_ONLY = "any", "new", "known"
_ASK_S = 30
_TOKEN = re.compile("%([%hnpr])")


@dataclass(frozen=True)
class SshSettings:
    """``host_keys``: which hosts are trusted, ``any``, ``new`` (unknown ones, too) or ``known``. ``alias``: under which name
    the host's key is known, empty for its address and port.
    """

    address: str
    port: int
    user: str
    identity_files: list[str]
    only_these_identities: bool
    agent: str
    known_hosts: list[str]
    host_keys: str
    alias: str
    proxy_command: str
    password: str
    timeout_s: float


def settings_of(connection: Any) -> SshSettings:
    """Return what the connection plugin ``connection`` of a task would use. Raises ``LiveUpgradeError``.

    It is asked for its options, and OpenSSH for what it makes of them: nothing is connected.
    """
    if connection.transport != "ssh":
        raise LiveUpgradeError(f"Ansible reaches it by the connection {connection.transport!r}, not by ssh")
    options = {name: connection.get_option(name) for name in _OPTIONS}
    command = [str(options["ssh_executable"] or "ssh"), "-G", *_arguments(options), str(options["host"])]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_ASK_S)
    except (OSError, subprocess.SubprocessError) as exc:
        raise LiveUpgradeError(f"{command[0]} -G does not tell its settings: {exc}") from exc
    if done.returncode:
        raise LiveUpgradeError(f"{command[0]} -G refused the settings: {done.stderr.strip()}")
    return parse_settings(done.stdout, str(options["password"] or ""), float(options["timeout"] or 10))


def parse_settings(told: str, password: str, timeout_s: float) -> SshSettings:
    """Return the settings that ``ssh -G`` told."""
    single: dict[str, str] = {}
    identities = []
    for line in told.splitlines():
        key, _space, value = line.partition(" ")
        if key == "identityfile":
            identities.append(os.path.expanduser(value))
        else:
            single.setdefault(key, value)
    files = shlex.split(single.get("userknownhostsfile", "")) + shlex.split(single.get("globalknownhostsfile", ""))
    settings = SshSettings(
        address=single["hostname"],
        port=int(single["port"]),
        user=single["user"],
        identity_files=identities,
        only_these_identities=single.get("identitiesonly") == "yes",
        agent=_agent(single.get("identityagent", "")),
        known_hosts=[os.path.expanduser(path) for path in files if path != "none"],
        host_keys=_trust(single.get("stricthostkeychecking", "ask")),
        alias=single.get("hostkeyalias", "").replace("none", ""),
        proxy_command="",
        password=password,
        timeout_s=timeout_s,
    )
    proxy = _proxy(single)
    return replace(settings, proxy_command=_expanded(proxy, settings))


_OPTIONS = (
    "ssh_executable",
    "ssh_args",
    "ssh_common_args",
    "ssh_extra_args",
    "host",
    "port",
    "remote_user",
    "private_key_file",
    "host_key_checking",
    "password",
    "timeout",
)


def _arguments(options: dict[str, Any]) -> list[str]:
    """In the order of Ansible's own: what comes first holds."""
    own = ["-o", "StrictHostKeyChecking=no"] if options["host_key_checking"] is False else []
    own += ["-o", f"Port={options['port']}"] if options["port"] is not None else []
    key = options["private_key_file"]
    own += ["-o", f'IdentityFile="{os.path.expanduser(key)}"'] if key else []
    own += ["-o", f'User="{options["remote_user"]}"'] if options["remote_user"] else []
    first, *last = (shlex.split(options[name] or "") for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"))
    return [*first, *own, *last[0], *last[1]]


def _trust(strict: str) -> str:
    return {"no": ACCEPT_ANY, "off": ACCEPT_ANY, "false": ACCEPT_ANY, "accept-new": ACCEPT_NEW}.get(strict, KNOWN_ONLY)


def _agent(told: str) -> str:
    """Return the agent's socket, empty for none."""
    if told in ("", "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK", "")
    if told == "none":
        return ""
    return os.environ.get(told[1:], "") if told.startswith("$") else os.path.expanduser(told)


def _proxy(single: dict[str, str]) -> str:
    jumps = single.get("proxyjump", "none")
    if jumps != "none":
        *first, last = jumps.split(",")
        by = ["-J", ",".join(first)] if first else []
        # IPv6 addresses are in brackets already, and a port may follow.
        target = last if last.startswith("ssh://") or ":" not in last else f"ssh://{last}"
        return shlex.join(["ssh", *by, "-W", "[%h]:%p", target])
    command = single.get("proxycommand", "none")
    return "" if command == "none" else command


def _expanded(command: str, settings: SshSettings) -> str:
    values = {
        "%": "%",
        "h": settings.address,
        "n": settings.address,
        "p": str(settings.port),
        "r": settings.user,
    }
    return _TOKEN.sub(lambda found: values[found[1]], command)
