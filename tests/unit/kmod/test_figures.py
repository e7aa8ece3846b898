# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines that count, and what a series of patches changes."""

from __future__ import annotations

from pathlib import Path

from kmodlab.figures import code_lines, diffstat
from kmodlab.machine import Run

SOURCE = """\
/* a comment
 * over lines */
int a;	/* beside code */

// another
int b;
"""
PATCH = """\
Subject: one
---
 a.c | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

--- a/a.c
+++ b/a.c
@@ -1,2 +1,2 @@
-int old;
+int new;
 int kept;
-- \n2.47
"""


def test_blank_lines_and_comments_do_not_count() -> None:
    assert code_lines(SOURCE) == 2


def test_a_series_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "0001-one.patch").write_text(PATCH)
    (tmp_path / "0002-two.patch").write_text(PATCH)
    (tmp_path / "series").write_text("0001-one.patch\n0002-two.patch\n")
    assert diffstat(tmp_path) == "2 patches, 1 files changed, 2 insertions(+), 2 deletions(-)"


def test_a_run_tells_its_figures() -> None:
    output = "FIGURE: kvm_amd unloaded in 30 ms\r\nno FIGURE: of its own\nKMOD: pass\n"
    assert Run(output, True, 1.0).figures() == ["kvm_amd unloaded in 30 ms"]
