# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels that are compiled for the tests: a wish that would be ignored in silence is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmlab.iommufd import span_iterator
from vmmlab.own_kernel import CONFIGS, unmet, wanted_options
from vmmlab.progress import LabError


def test_debug_kernel_is_to_have_the_checks_that_its_cases_look_at() -> None:
    options = wanted_options(CONFIGS / "debug.config")
    assert {
        options[f"CONFIG_{name}"] for name in ("PROVE_LOCKING", "DEBUG_KMEMLEAK", "DEBUG_OBJECTS", "MODULE_SIG")
    } == {"y"}


def test_a_line_that_names_no_option_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some.config"
    path.write_text("CONFIG_KVM=m\n# CONFIG_NUMA is not set\n\nCONFIG_SMP\n")
    with pytest.raises(LabError, match=r"some.config:4: 'CONFIG_SMP' is not CONFIG_<name>=<value>"):
        wanted_options(path)


def test_what_did_not_come_out_as_wanted_is_told() -> None:
    options = {"CONFIG_KVM": "m", "CONFIG_SMP": "y", "CONFIG_NUMA": "n", "CONFIG_GONE": "y", "CONFIG_NAME": '"x"'}
    configuration = 'CONFIG_KVM=y\nCONFIG_SMP=y\n# CONFIG_NUMA is not set\nCONFIG_NAME="x"\n'
    assert unmet(options, configuration) == ["CONFIG_KVM is y and not m", "CONFIG_GONE is n and not y"]


def test_part_of_interval_trees_that_iommufd_needs_is_found_or_missed() -> None:
    source = "all();\n#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\nspan();\n#endif\n"
    assert span_iterator(source).splitlines()[-1] == "span();"
    assert "all();" not in span_iterator(source)
    with pytest.raises(LabError, match="CONFIG_INTERVAL_TREE_SPAN_ITER"):
        span_iterator("all();\n")
