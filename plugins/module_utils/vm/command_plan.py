# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a re-created command line consists of, and the sheet on which its parts write. PRIVATE to the collection."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse_keyval

_FIRST_NUMBER = 100
_DESCRIPTOR_KEYS = ("fd", "fds", "vhostfd", "vhostfds")


@dataclass(frozen=True)
class InheritedFd:
    """The new process must see descriptor ``source_fd`` of process ``source_pid`` as its descriptor ``number``."""

    number: int
    source_pid: int
    source_fd: int
    purpose: str


@dataclass(frozen=True)
class HeldClient:
    """The character device ``chardev``, which listens on ``address``, has a client."""

    chardev: str
    address: str


@dataclass(frozen=True)
class Problem:
    """Why the VM's command line cannot be re-created, and what a person can do about it."""

    code: str
    message: str
    action: str

    def __str__(self) -> str:
        return self.message


PIDFILE_VARIABLE = "VMM_LIVE_UPGRADE_PIDFILE"
"""Names the pid file of a VM that was started with one, for processes that are not told by an option."""


@dataclass
class CommandPlan:
    """A command line for the new process. With any ``problems`` it must not be used.

    ``changes``: readable lines, what differs for the VM or its user and why. ``pidfile``: the file that has to name the
    new process, which does not write it itself; its successors know it by their environment. ``clients``: connections that
    the new process has to be given once it runs.
    """

    argv: list[str]
    fds: list[InheritedFd] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    pidfile: str | None = None
    clients: list[HeldClient] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a new process that the engine starts is told besides what it inherits."""
        return {PIDFILE_VARIABLE: self.pidfile} if self.pidfile else {}


class Draft:
    """The sheet: descriptors to hand over with their numbers, changes and problems noted on the way."""

    def __init__(self, pid: int, working_directory: str, options: list[Option], of_child: bool) -> None:
        """``options`` are those of the old process ``pid``: numbers and names they use are not given again.

        ``of_child``: the new process is a child of the old one and has its descriptors under the same numbers.
        """
        self.of_child = of_child
        self.pid = pid
        self.working_directory = working_directory
        self.fds: list[InheritedFd] = []
        self.clients: list[HeldClient] = []
        self.changes: list[str] = []
        self.problems: list[Problem] = []
        self._numbers = _numbers_in(options)
        self._names = _names_in(options)

    def inherit(self, source_fd: int, purpose: str, number: int | None = None) -> int:
        """Hand ``source_fd`` of the old process over and return the number the new one sees: a free one, unless given."""
        if self.of_child:
            number = source_fd
        elif number is None:
            number = _FIRST_NUMBER
            while number in self._numbers:
                number += 1
        self._numbers.add(number)
        if all(item.number != number for item in self.fds):
            self.fds.append(InheritedFd(number, self.pid, source_fd, purpose))
        return number

    def name(self, stem: str) -> str:
        """Return an id that no option uses: ``stem`` with the lowest free number."""
        index = 0
        while f"{stem}{index}" in self._names:
            index += 1
        self._names.add(f"{stem}{index}")
        return f"{stem}{index}"

    def change(self, text: str) -> None:
        """Note what will differ."""
        self.changes.append(text)

    def problem(self, code: str, message: str, action: str) -> None:
        """Note what makes a re-creation impossible."""
        self.problems.append(Problem(code, message, action))

    def path(self, name: str) -> Path:
        """Return ``name`` as we see it: relative to the old process's directory, below its root."""
        inside = Path(self.working_directory) / name
        return Path(f"/proc/{self.pid}/root{inside}")


def _numbers_in(options: list[Option]) -> set[int]:
    numbers: set[int] = set()
    for option in options:
        for key, value in _fields(option).items():
            if key.rpartition(".")[2] in _DESCRIPTOR_KEYS:
                numbers.update(int(word) for word in value.split(":") if word.isdigit())
    return numbers


def _names_in(options: list[Option]) -> set[str]:
    return {_fields(option).get("id", "") for option in options}


def _fields(option: Option) -> dict[str, str]:
    try:
        return parse_keyval(option.value or "")
    except ValueError:
        return {}
