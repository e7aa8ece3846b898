# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pid files are rewritten, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.pidfile import rewrite_pidfile

OLD, NEW = 54321, 99


@pytest.mark.parametrize("text", [f"{OLD}\n", f"{OLD}", f"{NEW}\n"])
def test_a_file_of_the_old_process_names_the_new_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text)
    inode = path.stat().st_ino
    assert rewrite_pidfile(str(path), OLD, NEW) == []
    assert (path.read_text(), path.stat().st_ino) == (f"{NEW}\n", inode)


@pytest.mark.parametrize("text", ["1\n", "root:x:0:0:root:/root:/bin/bash\n", "", f"{OLD} {OLD}\n", "\xff"])
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "passwd"
    path.write_text(text, encoding="latin-1")
    warnings = rewrite_pidfile(str(path), OLD, NEW)
    assert warnings == [f"the pid file {path} does not name the old process {OLD}, and was left as it is"]
    assert path.read_text(encoding="latin-1") == text


def test_a_file_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert rewrite_pidfile(str(path), OLD, NEW) == [
        f"the pid file {path} still names the old process: No such file or directory"
    ]
    assert not path.exists()
