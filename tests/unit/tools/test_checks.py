# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks find what they are there to find."""

from __future__ import annotations

from pathlib import Path

import check_licenses
import check_links
import check_role_specs
import check_shell
import pytest

TAG = "SPDX-License-" + "Identifier: "
GPL_LINE = "# GNU General Public License v3.0+ (see LICENSES)\n"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        pytest.param("docs/a.md", f"<!-- {TAG}GPL-3.0-or-later -->", None, id="right"),
        pytest.param("docs/a.md", "# text", "no SPDX", id="none"),
        pytest.param("docs/a.md", f"{TAG}MIT", "says MIT", id="another"),
        pytest.param("qemu/overlay/a.c", f"/* {TAG}GPL-3.0-or-later */", "should be GPL-2.0-or-later", id="qemu"),
        pytest.param("qemu/overlay/a.c", f"/* {TAG}GPL-2.0-or-later */", None, id="qemu-right"),
        pytest.param("plugins/a.py", f"# {TAG}GPL-3.0-or-later", "copyright and the GPL line", id="plugin"),
        pytest.param("plugins/a.py", f"{GPL_LINE}# {TAG}GPL-3.0-or-later", None, id="plugin-right"),
        pytest.param("plugins/module_utils/__init__.py", "", None, id="empty"),
        pytest.param("LICENSES/GPL-2.0-or-later.txt", "text", None, id="license-text"),
    ],
)
def test_licenses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, problem: str | None
) -> None:
    monkeypatch.setattr(check_licenses, "ROOT", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(content)
    found = check_licenses.problem_of(Path(name))
    assert found is None if problem is None else found is not None and problem in found


@pytest.mark.parametrize(
    ("option", "defaults", "problem"),
    [
        pytest.param("{type: int, default: 1, description: d}", "it_x: 1", None, id="same"),
        pytest.param("{type: int, default: 1, description: d}", "it_x: 2", "default 1 in the spec, 2 in", id="differs"),
        pytest.param("{type: int, default: 1, description: d}", "{}", "defaults/main.yml none", id="only-in-spec"),
        pytest.param("{type: int, description: d}", "it_x: 2", "the spec no default", id="only-in-defaults"),
        pytest.param("{type: int, description: d}", "it_x: 2\nit_y: 3", "it_y is in defaults", id="no-option"),
        pytest.param("{type: int, default: one, description: d}", "it_x: one", "is no int", id="type"),
        pytest.param("{type: int, default: true, description: d}", "it_x: true", "is no int", id="bool-is-no-int"),
        pytest.param("{type: number, description: d}", "{}", "none we know", id="unknown-type"),
        pytest.param("{type: int, default: 1}", "it_x: 1", "no description", id="undescribed"),
        pytest.param(
            "{type: int, default: 1, required: true, description: d}", "it_x: 1", "is required", id="required"
        ),
    ],
)
def test_role_specs(tmp_path: Path, option: str, defaults: str, problem: str | None) -> None:
    role = tmp_path / "it"
    (role / "meta").mkdir(parents=True)
    (role / "defaults").mkdir()
    (role / "meta" / "argument_specs.yml").write_text(f"argument_specs: {{main: {{options: {{it_x: {option}}}}}}}")
    (role / "defaults" / "main.yml").write_text(defaults)
    found = check_role_specs.problems_of(role)
    assert found == [] if problem is None else any(problem in text for text in found)


def test_a_role_without_specs_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    assert check_role_specs.problems_of(tmp_path / "it") == ["it: no meta/argument_specs.yml"]


@pytest.mark.parametrize(
    ("name", "first_line", "is_shell"),
    [
        pytest.param("a", "#!/bin/sh\n", True, id="sh"),
        pytest.param("a", "#!/usr/bin/env bash\n", True, id="env"),
        pytest.param("a", "#!/bin/busybox sh\n", True, id="busybox"),
        pytest.param("a.sh", "echo\n", True, id="suffix"),
        pytest.param("a", "#!/usr/bin/env python3\n", False, id="python"),
        pytest.param("a", "echo\n", False, id="none"),
    ],
)
def test_shell_scripts_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first_line: str, is_shell: bool
) -> None:
    monkeypatch.setattr(check_shell, "ROOT", tmp_path)
    (tmp_path / name).write_text(first_line)
    assert check_shell.is_shell(Path(name)) is is_shell


OTHER_PAGE = """# Other page
```console
# not a heading
```
## What `x` does, and why
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("[a](other.md) [b](../README.md) [c](sub/) [d](#here)\n## Here", None, id="right"),
        pytest.param("[a](other.md#what-x-does-and-why)", None, id="heading"),
        pytest.param("[a](https://example.org/none) [b](mailto:a@example.org)", None, id="not-relative"),
        pytest.param("`[a](none.md)`\n```\n[a](none.md)\n```\n", None, id="code"),
        pytest.param("[a](none.md)", "docs/page.md: none.md: no such file", id="missing"),
        pytest.param('[`a`](none.md "title")', "docs/page.md: none.md: no such file", id="code-in-link"),
        pytest.param("[a][1]\n\n[1]: none.md\n", "docs/page.md: none.md: no such file", id="reference"),
        pytest.param("[a](ignored.md)", "docs/page.md: ignored.md: no such file", id="not-tracked"),
        pytest.param("[a](other.md#not-a-heading)", "docs/other.md has no such heading", id="heading-in-code"),
        pytest.param("[a](#gone)", "docs/page.md has no such heading", id="own-heading"),
    ],
)
def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str | None) -> None:
    monkeypatch.setattr(check_links, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name, content in (("page.md", text), ("other.md", OTHER_PAGE), ("ignored.md", "")):
        (tmp_path / "docs" / name).write_text(content)
    known = {Path(name) for name in ("README.md", "docs/page.md", "docs/other.md", "docs/sub")}

    found = check_links.problems_of(Path("docs/page.md"), known)

    assert found == [] if problem is None else len(found) == 1 and problem in found[0]
