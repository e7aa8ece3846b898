# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Character devices and network back ends of a command line, reworded so that a second process can have them too.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import re
import stat

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    Option,
    format_keyval,
    parse_keyval,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import Draft, HeldClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.handover import HeldDescriptors, tcp_address

PRIVATE_MONITOR = "vmm-live-upgrade-mon"
_WITHOUT_IT = "restart the VM without it, or shut it down and start it on the new build"
_ADDRESS_KEYS = ("path", "host", "port", "to", "ipv4", "ipv6", "mptcp", "abstract", "tight", "fd")
# A protocol on the connection, in the middle of which a new process cannot begin.
_WITH_A_STATE = ("telnet", "tn3270", "websocket", "tls-creds")
_REFUSED_CHARACTERS = {
    "stdio": "the terminal of the old process",
    "pty": "a pseudo terminal of the old process's own",
    "udp": "a port bound by the old process",
    "spicevmc": "SPICE",
    "spiceport": "SPICE",
    "dbus": "D-Bus",
}
_TAP_KEYS = ("ifname", "script", "downscript", "br", "helper", "vnet_hdr", "queues", "fd", "fds", "vhostfd", "vhostfds")
_ON = ("on", "yes", "true", "y")
_VHOST_NET = "/dev/vhost-net"


class CharacterDevices:
    """``-chardev`` and the short forms ``-serial``, ``-parallel``, ``-monitor``, ``-qmp``, ``-debugcon``."""

    def __init__(self, draft: Draft, held: HeldDescriptors, filenames: dict[str, str], monitors: set[str]) -> None:
        """``filenames``: label → what ``query-chardev`` says of it; ``monitors``: ids of those that carry monitors."""
        self._draft = draft
        self._held = held
        self._filenames = filenames
        self._monitors = monitors
        self._counts = {"serial": 0, "parallel": 0}

    def chardev(self, option: Option) -> list[Option]:
        """Return what takes the place of a ``-chardev``."""
        fields = parse_keyval(option.value or "", "backend")
        name = fields.get("id", "")
        if name.startswith(PRIVATE_MONITOR):
            return []
        return [Option("chardev", format_keyval(self.reworded(fields, name), "backend"))]

    def short_form(self, option: Option) -> list[Option]:
        """Return what takes the place of a short form; the guest's devices and their order stay as they are."""
        value = option.value or ""
        label = self._label(option.name)
        with_monitor = value.startswith("mon:")
        fields = _short_form(value[4:] if with_monitor else value)
        if fields is None:
            return [option]
        name = label or self._draft.name("vmm-monitor")
        if not label or with_monitor:
            self._monitors.add(name)
        fields = self.reworded({**fields, "id": name}, name)
        if with_monitor:
            fields["mux"] = "on"
        user = {
            "monitor": [Option("mon", f"chardev={name},mode=readline")],
            "qmp": [Option("mon", f"chardev={name},mode=control")],
            "qmp-pretty": [Option("mon", f"chardev={name},mode=control,pretty=on")],
            "debugcon": [Option("device", f"isa-debugcon,chardev={name}")],
        }.get(option.name, [Option(option.name, f"chardev:{name}")])
        if with_monitor:
            user.append(Option("mon", f"chardev={name},mode=readline"))
        return [Option("chardev", format_keyval(fields, "backend")), *user]

    def reworded(self, fields: dict[str, str], name: str) -> dict[str, str]:
        """Return the fields of a ``-chardev`` for the new process, noting what has to be handed over."""
        backend = fields.get("backend", "")
        fields = dict(fields)
        if backend in _REFUSED_CHARACTERS:
            self._draft.problem(
                "chardev-not-coverable",
                f"the character device {name} is {_REFUSED_CHARACTERS[backend]}, which no second process can have",
                _WITHOUT_IT,
            )
        elif backend == "socket":
            fields = self._socket(fields, name)
        elif backend == "file":
            fields["append"] = "on"
        elif backend in ("ringbuf", "memory"):
            self._draft.change(f"character device {name}: what its ring buffer holds is lost")
        if "logfile" in fields:
            fields["logappend"] = "on"
        return fields

    def _socket(self, fields: dict[str, str], name: str) -> dict[str, str]:
        if fields.get("server", "off") not in _ON:
            return self._client(fields, name)
        fd = self._listening(fields)
        if fd is None:
            self._draft.problem(
                "listener-lost",
                f"the listening socket of the character device {name} ({_address(fields)}) is not among the descriptors "
                "of the old process",
                "look at the process (ss -lxp); " + _WITHOUT_IT,
            )
            return fields
        given = fields.get("fd")
        address = self._held.address_of(fd)
        number = self._draft.inherit(fd, f"listening socket {address}", int(given) if given else None)
        if not given:
            self._draft.change(f"{address} is handed over open (character device {name})")
        self._note_client(fields, name, address)
        kept = {key: value for key, value in fields.items() if key not in _ADDRESS_KEYS}
        return {**kept, "fd": str(number), "server": "on", "wait": "off"}

    def _client(self, fields: dict[str, str], name: str) -> dict[str, str]:
        """A connection that QEMU made: the new process makes its own, unless it was given one."""
        given = fields.get("fd", "")
        if not given:
            self._draft.change(f"character device {name} connects to {_address(fields)} anew")
        elif given.isdigit() and self._held.is_open(int(given)):
            self._draft.inherit(int(given), f"connection of character device {name}", int(given))
        else:
            self._draft.problem("descriptor-gone", f"the connection of character device {name} is closed", _WITHOUT_IT)
        return fields

    def _listening(self, fields: dict[str, str]) -> int | None:
        given = fields.get("fd", "")
        if given:
            return int(given) if given.isdigit() and self._held.address_of(int(given)) else None
        if "path" in fields:
            abstract = fields.get("abstract", "off") in _ON
            return self._held.listening_on("@" * abstract + fields["path"])
        address = tcp_address(fields.get("port", ""))
        return self._held.listening_on(address) if address else None

    def _note_client(self, fields: dict[str, str], name: str, address: str | None) -> None:
        filename = self._filenames.get(name, "disconnected:")
        if name in self._monitors or filename.startswith("disconnected:"):
            return
        if address is None or any(fields.get(key, "off") != "off" for key in _WITH_A_STATE):
            self._draft.change(f"character device {name}: its client is disconnected and has to connect again")
        else:
            self._draft.clients.append(HeldClient(name, address))
            self._draft.change(
                f"character device {name}: its client stays connected; what is sent in the pause may be lost"
            )

    def _label(self, name: str) -> str:
        """QEMU's own label for the n-th device of a kind; monitors have none that stays the same."""
        if name == "debugcon":
            return name
        if name not in self._counts:
            return ""
        self._counts[name] += 1
        return f"{name}{self._counts[name] - 1}"


class NetworkBackends:
    """``-netdev``: taps are handed over, the built-in user network starts anew, all else is refused."""

    def __init__(
        self, draft: Draft, held: HeldDescriptors, owner: tuple[int, int], known: dict[str, dict[str, str]]
    ) -> None:
        """``owner``: uid and gid of the VM; ``known``: netdev → what ``info network`` says of it."""
        self._draft = draft
        self._held = held
        self._owner = owner
        self._known = known
        self._claimed: set[str] = {fields["ifname"] for fields in known.values() if "ifname" in fields}

    def netdev(self, option: Option) -> list[Option]:
        """Return what takes the place of a ``-netdev``."""
        fields = parse_keyval(option.value or "", "type")
        kind, name = fields.get("type", ""), fields.get("id", "")
        if kind in ("tap", "bridge"):
            return self._tap(fields)
        if kind == "user":
            self._refuse_forwarding(fields, name)
            self._draft.change(
                f"network back end {name}: connections of the guest through QEMU's user network are lost"
            )
        elif kind != "hubport":
            self._draft.problem(
                "netdev-not-coverable", f"the network back end {name} ({kind}) cannot be handed over", _WITHOUT_IT
            )
        return [option]

    def claim(self, options: list[Option]) -> None:
        """Take note which taps belong to which netdev, before the first is reworded."""
        for option in options:
            if option.name == "netdev":
                fields = parse_keyval(option.value or "", "type")
                given = {self._held.interface_of(number) for number in _numbers(fields)} | {fields.get("ifname")}
                self._claimed.update(name for name in given if name)

    def _refuse_forwarding(self, fields: dict[str, str], name: str) -> None:
        if "hostfwd" in fields or "guestfwd" in fields or "hostfwd" in self._known.get(name, {}):
            self._draft.problem(
                "netdev-not-coverable",
                f"the network back end {name} forwards ports (hostfwd, guestfwd), which two processes cannot both bind",
                _WITHOUT_IT,
            )

    def _tap(self, fields: dict[str, str]) -> list[Option]:
        name = fields.get("id", "")
        given = _numbers(fields)
        if given:
            numbers = [self._given(name, number) for number in given]
        else:
            numbers = self._found(name, fields)
        if fields.get("vhost") in _ON or "vhostfd" in fields or "vhostfds" in fields:
            self._open_vhost_anew(name)
        kept = {key: value for key, value in fields.items() if key not in _TAP_KEYS and key != "type"}
        descriptors = ":".join(str(number) for number in numbers)
        kept["fds" if len(numbers) > 1 else "fd"] = descriptors
        return [Option("netdev", format_keyval({"type": "tap", **kept}, "type"))]

    def _given(self, name: str, number: int) -> int:
        interface = self._held.interface_of(number)
        if interface is None:
            self._draft.problem(
                "descriptor-gone", f"descriptor {number} of the network back end {name} is no tap any more", _WITHOUT_IT
            )
            return number
        return self._draft.inherit(number, f"tap {interface}", number)

    def _found(self, name: str, fields: dict[str, str]) -> list[int]:
        interface = fields.get("ifname") or self._known.get(name, {}).get("ifname") or self._left_over()
        queues = self._held.queues_of(interface or "")
        if not interface or len(queues) != int(fields.get("queues", "1")):
            self._draft.problem(
                "tap-not-found",
                f"it cannot be told which descriptors are the tap {interface or ''} of the network back end {name}",
                "look at the process's taps (grep iff /proc/PID/fdinfo/*); " + _WITHOUT_IT,
            )
            return []
        self._draft.change(f"tap {interface} is handed over open (network back end {name})")
        return [self._draft.inherit(fd, f"tap {interface}") for fd in queues]

    def _left_over(self) -> str | None:
        left = self._held.interfaces() - self._claimed
        return left.pop() if len(left) == 1 else None

    def _open_vhost_anew(self, name: str) -> None:
        """A vhost descriptor belongs to the address space that claimed it: the new process needs another one."""
        if _may_open(_VHOST_NET, *self._owner):
            self._draft.change(f"network back end {name}: the new process opens {_VHOST_NET} by itself")
        else:
            self._draft.problem(
                "vhost-not-coverable",
                f"the network back end {name} uses {_VHOST_NET}, which user {self._owner[0]} may not open",
                f"give the VM's user access to {_VHOST_NET} for the time of the upgrade",
            )


def network_facts(info_network: str, info_usernet: str) -> dict[str, dict[str, str]]:
    """Return netdev → its fields out of the texts of ``info network`` and ``info usernet``.

    ``hostfwd`` is set for a user network that forwards ports, whoever asked for it.
    """
    facts: dict[str, dict[str, str]] = {}
    for match in re.finditer(r"^(?: \\ )?(\S+): index=\d+,(type=.*)$", info_network, re.M):
        fields = parse_keyval(match[2].strip())
        if fields["type"] not in ("nic", "hubport"):
            facts[match[1]] = fields
    current = ""
    for line in info_usernet.splitlines():
        header = re.match(r"Hub -?\d+ \((.*)\):", line)
        if header:
            current = header[1]
        elif "[HOST_FORWARD]" in line:
            facts.setdefault(current, {"type": "user"})["hostfwd"] = "on"
    return facts


def _short_form(value: str) -> dict[str, str] | None:
    """Return a short form as ``-chardev`` fields; None when the new process can use it as it stands."""
    kind, _colon, rest = value.partition(":")
    if kind == "unix":
        return {"backend": "socket", **parse_keyval(rest, "path")}
    if kind in ("tcp", "telnet", "tn3270", "websocket"):
        address, _comma, others = rest.partition(",")
        host, _colon, port = address.rpartition(":")
        protocol = {} if kind == "tcp" else {kind: "on"}
        return {"backend": "socket", "host": host, "port": port, **protocol, **parse_keyval(others)}
    if kind == "file":
        return {"backend": "file", "path": rest}
    return {"backend": kind} if kind in _REFUSED_CHARACTERS else None


def _address(fields: dict[str, str]) -> str:
    return fields.get("path") or (
        f"fd {fields['fd']}" if "fd" in fields else f"{fields.get('host')}:{fields.get('port')}"
    )


def _numbers(fields: dict[str, str]) -> list[int]:
    words = (fields.get("fds") or fields.get("fd") or "").split(":")
    return [int(word) for word in words if word.isdigit()]


def _may_open(path: str, uid: int, gid: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    bits = stat.S_IMODE(status.st_mode)
    if uid == 0:
        return True
    shift = 6 if uid == status.st_uid else 3 if gid == status.st_gid else 0
    return (bits >> shift) & 6 == 6
