#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ``ansible-test sanity`` over the collection as it is installed from its own tarball.

ansible-test makes an environment per check and fetches the script that puts pip into it from a host of its own. Where
that host cannot be reached the check fails. So it finds in its cache a script that does the same with what Python
ships (ensurepip) and the package index that pip is set up for.

It runs with a home folder of its own, so that a developer's ``~/.ansible`` is left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ansible_test
from checkout import BUILD, CACHE, ROOT, VENV, environment
from collection import build, install

HOME = CACHE / "ansible-test"
WORK = BUILD / "sanity"
# What a managed host may have (see tests/config.yml), and what a controller may have.
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

GET_PIP = '''\
"""Stands in for get-pip.py: ensurepip, then the version of pip that ansible-test wants, then what it asks for."""
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"], stdout=subprocess.DEVNULL)
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *arguments]))
'''


def main() -> int:
    collection = install(build(), WORK)
    _provide_settings(collection / "tests")
    _provide_get_pip()
    values = environment(
        HOME=str(HOME),
        PATH=f"{_provide_pythons()}:{VENV / 'bin'}:{_path_without_shims()}",
        # The content root is named, because inside a work tree ansible-test would ask git, which ignores build/.
        ANSIBLE_TEST_CONTENT_ROOT=str(collection),
        **_pip_settings(),
    )
    for name in ("ANSIBLE_COLLECTIONS_PATH", "ANSIBLE_CONFIG", "ANSIBLE_HOME", "ANSIBLE_SSH_CONTROL_PATH_DIR"):
        values.pop(name)
    command = ["ansible-test", "sanity", "--color", "no", "--requirements", *sys.argv[1:]]
    return subprocess.run(command, cwd=collection, env=values, check=False).returncode


def _provide_settings(target: Path) -> None:
    """Not shipped, but what ansible-test reads: the Python versions that modules support, and exceptions, if any."""
    target.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "tests" / "config.yml", target / "config.yml")
    if (exceptions := ROOT / "tests" / "sanity").is_dir():
        shutil.copytree(exceptions, target / "sanity", dirs_exist_ok=True)


def _provide_get_pip() -> None:
    """Write the stand-in under the name that the ansible-test here looks for."""
    source = Path(ansible_test.__path__[0]) / "_internal" / "python_requirements.py"
    version = re.search(r"pip=['\"]([0-9.]+)['\"]", source.read_text())
    if version is None:
        raise SystemExit(f"{source}: which version of pip it wants is no longer told there; adapt {__file__}")
    target = HOME / ".ansible" / "test" / "cache" / f"get_pip_{version[1].replace('.', '_')}.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(GET_PIP)


def _provide_pythons() -> Path:
    """A folder with ``python3.X`` for every interpreter that works: pyenv's stand-ins on PATH exist but do not run."""
    folder = WORK / "pythons"
    folder.mkdir(parents=True, exist_ok=True)
    for version in PYTHONS:
        candidates = [shutil.which(f"python{version}", path=_path_without_shims())]
        candidates += [str(path) for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
        works = next((path for path in candidates if path and _can_make_environments(path)), None)
        if works:
            (folder / f"python{version}").symlink_to(works)
        else:
            print(f"sanity: no Python {version} here; ansible-test leaves it out", flush=True)
    return folder


def _can_make_environments(python: str) -> bool:
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0


def _path_without_shims() -> str:
    return os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if not part.endswith("/shims"))


def _pip_settings() -> dict[str, str]:
    """What pip would find in the real home folder."""
    home = Path.home()
    settings = {"PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(home / ".cache" / "pip"))}
    for name in (".config/pip/pip.conf", ".pip/pip.conf"):
        if "PIP_CONFIG_FILE" not in os.environ and (home / name).exists():
            settings["PIP_CONFIG_FILE"] = str(home / name)
            break
    return settings


if __name__ == "__main__":
    sys.exit(main())
