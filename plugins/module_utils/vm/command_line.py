# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's command line as values: its words into options and back, and the ``key=value,...`` of an option.

Two syntaxes are in use inside QEMU (util/qemu-option.c and util/keyval.c); what is read here is their union, and what is
written is understood by both. PRIVATE to the collection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

# Every option without an argument in qemu-options.hx of 10.2 and 11.1, then those that older releases had.
_FLAGS = frozenset(
    "S daemonize enable-kvm enable-sync-profile full-screen h help jitdump mem-prealloc no-fd-bootchk no-reboot no-shutdown "
    "no-user-config nodefaults nographic only-migratable perfmap preconfig s semihosting snapshot usb version win2k-hack "
    "xen-attach xen-domid-restrict "
    "alt-grab ctrl-grab curses enable-fips no-acpi no-hpet no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection "
    "no-quit nodefconfig old-param prom-env-raw rtc-td-hack sdl singlestep".split()
)


class CommandLineError(LiveUpgradeError, ValueError):
    """A command line, or an option's value, that QEMU would not take either."""


@dataclass(frozen=True)
class Option:
    """One option: ``name`` without its dash, ``value`` None for one that takes none."""

    name: str
    value: str | None = None


def parse(argv: list[str]) -> list[Option]:
    """Return the options of ``argv``, whose first word is the program. ``--x`` is ``-x``; a bare word is a disk image.

    Raises ``CommandLineError`` for an option whose argument is missing.
    """
    options = []
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            options.append(Option("hda", word))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in _FLAGS:
            options.append(Option(name))
            continue
        value = next(words, None)
        if value is None:
            raise CommandLineError(f"the option -{name} is the last word and lacks its argument")
        options.append(Option(name, value))
    return options


def render(options: list[Option]) -> list[str]:
    """Return the words of ``options``, without the program: the inverse of ``parse``."""
    words = []
    for option in options:
        words.append(f"-{option.name}")
        if option.value is not None:
            words.append(option.value)
    return words


def is_json(value: str) -> bool:
    """Say whether an option's value is a JSON object, which some options take in place of ``key=value``."""
    return value.lstrip().startswith("{")


def parse_keyval(value: str, implied_key: str | None = None) -> dict[str, str]:
    """Return the keys of ``key=value,...``, where ``,,`` is a comma of a value; of equal keys the last one counts.

    A first item without ``=`` belongs to ``implied_key``; another such item is a switch: ``server`` is ``server=on``,
    ``nowait`` is ``wait=off``. A JSON object gives dotted keys. Raises ``CommandLineError`` for JSON that is none.
    """
    if is_json(value):
        return _flatten(_load(value))
    fields: dict[str, str] = {}
    for index, item in enumerate(_items(value)):
        key, equals, content = item.partition("=")
        if equals:
            fields[key] = content
        elif index == 0 and implied_key:
            fields[implied_key] = item
        elif item.startswith("no"):
            fields[item[2:]] = "off"
        elif item:
            fields[item] = "on"
    return fields


def format_keyval(fields: dict[str, str], implied_key: str | None = None) -> str:
    """Return ``fields`` as ``key=value,...``; the value of ``implied_key`` stands first and without its key."""
    items = [f"{key}={content.replace(',', ',,')}" for key, content in fields.items() if key != implied_key]
    if implied_key is not None and implied_key in fields:
        items.insert(0, fields[implied_key].replace(",", ",,"))
    return ",".join(items)


def _items(value: str) -> list[str]:
    """Split at single commas; ``,,`` becomes one comma."""
    items, current, position = [], "", 0
    while position < len(value):
        if value[position] != ",":
            current += value[position]
        elif value[position + 1 : position + 2] == ",":
            current += ","
            position += 1
        else:
            items.append(current)
            current = ""
        position += 1
    return [*items, current] if current else items


def _load(value: str) -> dict[str, Any]:
    try:
        loaded = json.loads(value)
    except ValueError as exc:
        raise CommandLineError(f"not JSON: {value!r:.80} ({exc})") from exc
    return dict(loaded)


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: ("on" if value else "off") if isinstance(value, bool) else "" if value is None else str(value)}
    fields: dict[str, str] = {}
    for key, item in items:
        fields.update(_flatten(item, f"{prefix}.{key}" if prefix else key))
    return fields
