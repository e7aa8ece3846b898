# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words into options and back; the two spellings of ``key=value``."""

from __future__ import annotations

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    CommandLineError,
    Option,
    format_keyval,
    parse,
    parse_keyval,
    render,
)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], []),
        (["-m", "1G", "-S"], [Option("m", "1G"), Option("S")]),
        (["--nodefaults", "--name", "a"], [Option("nodefaults"), Option("name", "a")]),
        (["-serial", "-S"], [Option("serial", "-S")]),
        (["disk.img"], [Option("hda", "disk.img")]),
        (["-no-acpi", "-name", "a"], [Option("no-acpi"), Option("name", "a")]),
        (["-kernel", ""], [Option("kernel", "")]),
    ],
    ids=["empty", "flag", "double-dash", "value-with-dash", "bare-image", "flag-of-old", "empty-value"],
)
def test_words_become_options(words: list[str], options: list[Option]) -> None:
    assert parse(["qemu", *words]) == options
    assert parse(["qemu", *render(options)]) == options


def test_missing_argument_is_an_error() -> None:
    with pytest.raises(CommandLineError, match="-name is the last word"):
        parse(["qemu", "-S", "-name"])


@pytest.mark.parametrize(
    ("value", "implied", "fields"),
    [
        ("", None, {}),
        ("virtio-blk-pci,id=a", "driver", {"driver": "virtio-blk-pci", "id": "a"}),
        ("id=a", "driver", {"id": "a"}),
        ("guest=a,,b,process=c", "guest", {"guest": "a,b", "process": "c"}),
        ("a,,b", "path", {"path": "a,b"}),
        ("/run/q,server,nowait", "path", {"path": "/run/q", "server": "on", "wait": "off"}),
        ("file=a=b", None, {"file": "a=b"}),
        ("size=1G,,,share=on", None, {"size": "1G,", "share": "on"}),
        ("a=1,a=2", None, {"a": "2"}),
        ("id=x,addr=", None, {"id": "x", "addr": ""}),
        ('{"driver": "file", "cache": {"direct": true}, "l": ["x", 2]}', "driver",
         {"driver": "file", "cache.direct": "on", "l.0": "x", "l.1": "2"}),
    ],
    ids=["none", "implied", "no-implied", "comma", "comma-implied", "switches", "equals", "odd-commas", "last-wins",
         "empty", "json"],
)  # fmt: skip
def test_keys_of_a_value(value: str, implied: str | None, fields: dict[str, str]) -> None:
    assert parse_keyval(value, implied) == fields
    assert parse_keyval(format_keyval(fields, implied), implied) == fields


def test_broken_json_is_an_error() -> None:
    with pytest.raises(CommandLineError, match="not JSON"):
        parse_keyval('{"driver": ')


def test_implied_key_stands_first_and_commas_are_doubled() -> None:
    assert format_keyval({"id": "a", "driver": "x,y"}, "driver") == "x,,y,id=a"
