# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab fetches from where this machine's apt does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmlab.mirrors import KEYRING, source_lines
from vmmlab.progress import LabError


def apt(folder: Path, *mirrors: str) -> None:
    """Put an apt-get into ``folder`` that is set up with these mirrors."""
    lines = [f"'{mirror}/dists/some/InRelease' some_InRelease 0 " for mirror in mirrors]
    (folder / "apt-get").write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines))
    (folder / "apt-get").chmod(0o755)


@pytest.mark.parametrize(
    ("mirrors", "archive", "security"),
    [
        pytest.param(
            ["http://m/debian", "http://m/debian-security"], "http://m/debian", "http://m/debian-security", id="usual"
        ),
        pytest.param(
            ["http://s/debian-security", "http://m/debian"], "http://m/debian", "http://s/debian-security", id="order"
        ),
        pytest.param(["https://other/apt", "http://m/debian"], "http://m/debian", None, id="others-first"),
        pytest.param(["http://proxy/deb-remote"], "http://proxy/deb-remote", None, id="of-another-name"),
    ],
)
def test_suites_come_from_the_mirrors_of_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrors: list[str], archive: str, security: str | None
) -> None:
    apt(tmp_path, *mirrors)
    monkeypatch.setenv("PATH", str(tmp_path))

    options = f"[arch=amd64 signed-by={KEYRING}]"
    wanted = [f"deb {options} {archive} trixie main", f"deb {options} {archive} trixie-updates main"]
    assert source_lines("trixie") == wanted + ([f"deb {options} {security} trixie-security main"] if security else [])


def test_no_mirror_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt(tmp_path, "http://m/debian-security")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="no Debian mirror"):
        source_lines("trixie")


def test_no_apt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="cannot be asked"):
        source_lines("trixie")
