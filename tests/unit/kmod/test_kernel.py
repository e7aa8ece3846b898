# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a module that the kernel refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("insmod: ERROR: could not insert module x.ko: Key was rejected by service", True),
        ("insmod: ERROR: could not insert module x.ko: Invalid module format", False),
    ],
)
def test_who_signed_it_is_what_is_wrong_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, advised: bool
) -> None:
    insmod = tmp_path / "insmod"
    insmod.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    insmod.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with pytest.raises(LiveUpgradeError) as refused:
        Kernel().load(tmp_path / "x.ko")

    assert said in str(refused.value)
    assert ("does not know the key" in str(refused.value)) is advised
