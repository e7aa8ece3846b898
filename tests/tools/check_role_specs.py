#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that every role's argument specs and defaults say the same.

Each option with a ``default`` is in ``defaults/main.yml`` with that value and type, and each variable there is an
option; an option without a default is not there. All are named after their role.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from checkout import ROOT

TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "dict": (dict,),
    "float": (int, float),
    "int": (int,),
    "list": (list,),
    "path": (str,),
    "raw": (object,),
    "str": (str,),
}
_ABSENT = object()


def problems_of(role: Path) -> list[str]:
    """Return what differs between the two files of ``role``, each as a sentence."""
    name = role.name
    specs = _load(role / "meta" / "argument_specs.yml")
    if specs is None:
        return [f"{name}: no meta/argument_specs.yml"]
    options: dict[str, dict[str, Any]] = specs["argument_specs"]["main"].get("options") or {}
    defaults: dict[str, Any] = _load(role / "defaults" / "main.yml") or {}
    found = [f"{name}: {key} is in defaults/main.yml and no option" for key in defaults if key not in options]
    for key, option in options.items():
        found += [f"{name}: {key}: {problem}" for problem in _option_problems(name, key, option, defaults)]
    return found


def _option_problems(role: str, key: str, option: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    found = []
    spec_default, real_default = option.get("default", _ABSENT), defaults.get(key, _ABSENT)
    if not key.startswith(f"{role.lstrip('_')}_"):
        found.append("is not named after its role")
    if option.get("type") not in TYPES:
        found.append(f"type {option.get('type')!r} is none we know")
    elif spec_default is not _ABSENT and not _is_of_type(spec_default, option["type"]):
        found.append(f"default {spec_default!r} is no {option['type']}")
    if not option.get("description"):
        found.append("has no description")
    if spec_default is _ABSENT and real_default is not _ABSENT:
        found.append(f"defaults/main.yml has {real_default!r}, the spec no default")
    elif spec_default is not _ABSENT and real_default is _ABSENT:
        found.append(f"the spec has the default {spec_default!r}, defaults/main.yml none")
    elif spec_default != real_default:
        found.append(f"default {spec_default!r} in the spec, {real_default!r} in defaults/main.yml")
    if option.get("required") and spec_default is not _ABSENT:
        found.append("is required and has a default")
    return found


def _is_of_type(value: object, name: str) -> bool:
    if isinstance(value, bool) and name in ("int", "float"):
        return False
    return isinstance(value, TYPES[name])


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def main() -> int:
    roles = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
    problems = [problem for role in roles for problem in problems_of(role)]
    print("\n".join(problems) or f"{len(roles)} roles: specs and defaults say the same")
    return 1 if problems or not roles else 0


if __name__ == "__main__":
    sys.exit(main())
