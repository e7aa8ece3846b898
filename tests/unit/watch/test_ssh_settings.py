# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of ssh as Ansible would have them: its options, its order, and OpenSSH's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import (
    SshSettings,
    parse_settings,
    settings_of,
)

TOLD = """\
host h1
user root
hostname 192.0.2.7
port 2222
identityfile ~/.ssh/id_rsa
identityfile /keys/ansible
identitiesonly no
stricthostkeychecking ask
userknownhostsfile /known/a /known/b
globalknownhostsfile /etc/ssh/ssh_known_hosts
"""


class Connection:
    """What is used of Ansible's connection plugin."""

    def __init__(self, transport: str = "ssh", **options: Any) -> None:
        self.transport = transport
        self._options = {"host": "h1", "port": None, "timeout": 10, "host_key_checking": True, **options}

    def get_option(self, name: str) -> Any:
        return self._options.get(name)


def parsed(*more: str) -> SshSettings:
    return parse_settings("\n".join([*more, TOLD]), "", 10)


def test_takes_what_ssh_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")

    assert parsed() == SshSettings(
        address="192.0.2.7",
        port=2222,
        user="root",
        identity_files=["/home/op/.ssh/id_rsa", "/keys/ansible"],
        only_these_identities=False,
        agent="/run/agent",
        known_hosts=["/known/a", "/known/b", "/etc/ssh/ssh_known_hosts"],
        host_keys="known",
        alias="",
        proxy_command="",
        password="",
        timeout_s=10,
    )


@pytest.mark.parametrize(
    ("told", "trust"),
    [("no", "any"), ("off", "any"), ("false", "any"), ("accept-new", "new"), ("yes", "known"), ("true", "known")],
)
def test_trusts_no_more_than_ssh_does(told: str, trust: str) -> None:
    assert parsed(f"stricthostkeychecking {told}").host_keys == trust


@pytest.mark.parametrize(
    ("told", "command"),
    [
        ("proxycommand nc -X 5 %h %p as %r 100%%", "nc -X 5 192.0.2.7 2222 as root 100%"),
        ("proxycommand none", ""),
        ("proxyjump bastion", "ssh -W '[192.0.2.7]:2222' bastion"),
        ("proxyjump me@one:22,two", "ssh -J me@one:22 -W '[192.0.2.7]:2222' two"),
        ("proxyjump me@one:2200", "ssh -W '[192.0.2.7]:2222' ssh://me@one:2200"),
    ],
)
def test_goes_through_a_proxy(told: str, command: str) -> None:
    assert parsed(told).proxy_command == command


@pytest.mark.parametrize(
    ("told", "agent"),
    [("none", ""), ("SSH_AUTH_SOCK", "/run/agent"), ("$MINE", "/run/mine"), ("/run/other", "/run/other")],
)
def test_asks_the_agent_that_ssh_would_ask(told: str, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("MINE", "/run/mine")

    assert parsed(f"identityagent {told}").agent == agent


def test_asks_ssh_with_the_options_of_the_connection_in_ansibles_order(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host h1\n  HostName 192.0.2.9\n  Port 99\n  HostKeyAlias rack7\n  User nobody\n")
    settings = settings_of(
        Connection(
            ssh_args=f"-F {tmp_path}/config -o ControlMaster=auto",
            ssh_common_args=f"-o UserKnownHostsFile={tmp_path}/known -o Port=1",
            ssh_extra_args="-o StrictHostKeyChecking=accept-new",
            port=2022,
            remote_user="op",
            private_key_file=f"{tmp_path}/key",
            password="secret",
            timeout=7,
        )
    )

    assert (settings.address, settings.port, settings.user) == ("192.0.2.9", 2022, "op")
    assert (settings.alias, settings.host_keys) == ("rack7", "new")
    assert settings.identity_files == [f"{tmp_path}/key"]
    assert settings.known_hosts[0] == f"{tmp_path}/known"
    assert (settings.password, settings.timeout_s) == ("secret", 7)


def test_host_key_checking_that_is_off_is_off(tmp_path: Path) -> None:
    assert settings_of(Connection(ssh_args="-F none", host_key_checking=False)).host_keys == "any"
    assert settings_of(Connection(ssh_args="-F none")).host_keys == "known"


@pytest.mark.parametrize(
    ("connection", "why"),
    [
        pytest.param(Connection(transport="local"), "by the connection 'local'", id="local"),
        pytest.param(Connection(ssh_args="-o Nonsense=1"), "refused the settings", id="refused"),
        pytest.param(Connection(ssh_executable="/nonexistent/ssh"), "does not tell", id="no-ssh"),
    ],
)
def test_says_why_there_are_none(connection: Connection, why: str) -> None:
    with pytest.raises(LiveUpgradeError, match=why):
        settings_of(connection)
