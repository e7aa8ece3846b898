# SPDX-License-Identifier: GPL-3.0-or-later
"""The static comparison of migration formats, on descriptions as small as a case needs."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.vmstate import compare


def leaf(name: str, size: int = 4, version: int = 0, optional: bool = False, **more: Any) -> dict[str, Any]:
    return {"field": name, "size": size, "version_id": version, "field_exists": optional, **more}


def struct(name: str, fields: list[dict[str, Any]], size: int = 100, **more: Any) -> dict[str, Any]:
    return leaf(name, size, Description=description(name, fields), **more)


def description(name: str, fields: list[dict[str, Any]], version: int = 1, minimum: int = 1) -> dict[str, Any]:
    return {"name": name, "version_id": version, "minimum_version_id": minimum, "Fields": fields}


def dump(fields: list[dict[str, Any]], version: int = 1, minimum: int = 1, name: str = "dev") -> dict[str, Any]:
    section = {"version_id": version, "minimum_version_id": minimum}
    return {
        "vmschkmachine": {"Name": "pc-q35-10.2"},
        "device": {**section, "Description": description(name, fields, version, minimum)},
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dump([leaf("a"), leaf("b")]), dump([leaf("a"), leaf("b")])),
        (dump([leaf("a")], 1), dump([leaf("a"), leaf("b", version=2)], 2, 1)),
        (dump([leaf("a"), leaf("b")]), dump([leaf("a"), leaf("renamed")])),
        (dump([leaf("a", optional=True), leaf("b", 8)]), dump([leaf("b", 8)])),
        (dump([leaf("b", 8)]), dump([leaf("a", optional=True), leaf("b", 8)])),
        (dump([struct("s", [leaf("a")], size=100)]), dump([struct("s", [leaf("a")], size=116)])),
        (dump([leaf("a"), leaf("b", 8)]), dump([struct("s", [leaf("a"), leaf("b", 8)])])),
        (dump([struct("s", [leaf("a"), leaf("b", 8)])]), dump([leaf("a"), leaf("b", 8)])),
        (dump([leaf("unused", 12), leaf("z", 2)]), dump([leaf("a"), leaf("b", 8), leaf("z", 2)])),
        (dump([leaf("a", 2, num=4)]), dump([leaf("a", 8)])),
        ({**dump([leaf("a")])}, {**dump([leaf("a")]), "new-device": {}}),
    ],
    ids=[
        "same",
        "newer-reads-older",
        "renamed",
        "optional-gone",
        "optional-new",
        "c-size-of-a-structure",
        "moved-into-a-structure",
        "moved-out-of-a-structure",
        "unused-bytes-used",
        "array-as-one",
        "device-added",
    ],
)
def test_state_that_loads(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert compare(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            dump([leaf("a")]),
            {"vmschkmachine": {"Name": "pc-q35-10.2"}},
            "device: the other build does not know this device",
        ),
        (dump([leaf("a")], 2), dump([leaf("a")], 1), "device: version 2 is newer than the 1"),
        (dump([leaf("a")], 1), dump([leaf("a")], 3, 2), "device: version 1 is older than the 2"),
        (dump([leaf("a", 4)]), dump([leaf("a", 8)]), "device, dev.a: has 4 bytes, in the other build 8"),
        (dump([leaf("a"), leaf("b")]), dump([leaf("a")]), "device, dev.b: the other build does not know this field"),
        (dump([leaf("a")]), dump([leaf("a"), leaf("b")]), "device, dev.b: the other build expects this field"),
        (
            dump([leaf("a", 4), leaf("b", 8)]),
            dump([leaf("b", 8), leaf("a", 4)]),
            "device, dev.a: the other build has b",
        ),
        (dump([leaf("a")], name="x"), dump([leaf("a")], name="y"), "device, x: is called y in the other build"),
        (dump([struct("s", [leaf("a", 4)])]), dump([struct("s", [leaf("a", 2)])]), "device, s.a: has 4 bytes"),
        (
            dump([leaf("a")]),
            {**dump([leaf("a")]), "vmschkmachine": {"Name": "pc-q35-11.1"}},
            "vmschkmachine: machine type pc-q35-10.2 is not pc-q35-11.1",
        ),
    ],
    ids=[
        "device-gone",
        "version-lowered",
        "minimum-raised",
        "size-changed",
        "field-gone",
        "field-demanded",
        "order-changed",
        "description-renamed",
        "inside-a-structure",
        "machine-type",
    ],
)
def test_state_that_does_not_load(old: dict[str, Any], new: dict[str, Any], why: str) -> None:
    assert why in [str(item)[: len(why)] for item in compare(old, new)]
