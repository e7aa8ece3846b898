# SPDX-License-Identifier: GPL-3.0-or-later
"""All that an emulated host boots, out of the cache or made for it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from checkout import ARTIFACTS, NEW_SERIES, OLD_SERIES, ROOT, STOCK_ARTIFACTS

from kmodlab.builds import ModuleBuilds
from kmodlab.root import get_build_root
from vmmlab.artifact import default_artifact, get_outer_qemu
from vmmlab.cache import Cache, default_root
from vmmlab.generation import DEFAULT, GENERATIONS
from vmmlab.iommufd import get_iommufd_kernel
from vmmlab.kernel import Kernel, get_kernel
from vmmlab.progress import LabError, Progress

from .cases import CASES, NEW, OLD, OLDER_KERNEL, STOCK, STOCK_OLD, Case
from .guest import compile_program, guest_root
from .root import base_root, builds_root, cores_root, driver_root

BACKENDS = ["legacy", "iommufd"]
WITH_CORES = ["legacy"]
OLDER = GENERATIONS["6.1"]


@dataclass(frozen=True)
class Plan:
    """What one boot is to do. ``devices`` and ``cases`` are names, ``cases`` empty for all of the suite. ``arguments``: case →
    what it gets in place of its own.
    """

    suite: str
    backend: str
    devices: list[str]
    cases: list[str]
    arguments: dict[str, list[str]]

    def chosen(self) -> list[Case]:
        """The cases, but for those whose devices are not there, and those on a core of KVM where there is none (the kernel
        that has iommufd is of a series that cores are not made for), and those for another backend.
        """
        known = [case for case in CASES[self.suite] if not self.cases or case.name in self.cases]
        known = [case for case in known if not case.cores or self.backend in WITH_CORES]
        known = [case for case in known if case.backend in ("", self.backend)]
        return [case for case in known if {*case.devices, *case.spare} <= set(self.devices)]


class Builder:
    """``scratch`` is an empty folder, ``given`` has folders of QEMUs to be taken in place of the artifacts."""

    def __init__(self, scratch: Path, given: dict[str, Path], progress: Progress) -> None:
        self._scratch = scratch
        self._given = given
        self._progress = progress
        self._cache = Cache(default_root() / "lab")
        self._debian = get_kernel(self._cache, "passthrough", progress)
        self._root = get_build_root(self._cache, self._debian, progress)

    def kernel(self, plan: Plan) -> Kernel:
        """The host's. The guest's is Debian's of today."""
        if plan.suite == OLDER_KERNEL:
            return get_kernel(self._cache, "passthrough", self._progress, OLDER)
        if plan.backend == "legacy":
            return self._debian
        return get_iommufd_kernel(self._cache, self._root, self._progress)

    @functools.cache  # noqa: B019  # one of these is made in a run
    def emulator(self) -> Path:
        return get_outer_qemu(self._cache, default_artifact(NEW_SERIES), self._progress)

    def initrd(self, plan: Plan, target: Path) -> Path:
        """Write the initial root with the plan in it."""
        driver = driver_root({**dataclasses.asdict(plan), "cases": [case.name for case in plan.chosen()]})
        with open(target, "wb") as initrd:
            for part in (self._base(self.kernel(plan)), self._common(), driver):
                initrd.write(part)
            if any(case.cores for case in plan.chosen()):
                initrd.write(self._cores())
        return target

    @functools.cache  # noqa: B019
    def _base(self, kernel: Kernel) -> bytes:
        return base_root(kernel, [compile_program("gapwatch", self._scratch)])

    @functools.cache  # noqa: B019
    def _common(self) -> bytes:
        guest = guest_root(self._debian, self._root, self._scratch)
        return builds_root(self._builds(), self._debian, guest)

    @functools.cache  # noqa: B019
    def _cores(self) -> bytes:
        folder = self._scratch / "cores"
        folder.mkdir()
        kmod = ROOT / "kmod"
        release = self._debian.release
        builds = ModuleBuilds(kmod, DEFAULT.series, self._root, release, ARTIFACTS, folder, self._progress)
        return cores_root(builds.pair())

    def _builds(self) -> dict[str, Path]:
        """Name → folder of each QEMU that VMs run on."""
        artifacts = {
            OLD: default_artifact(OLD_SERIES),
            NEW: default_artifact(NEW_SERIES),
            STOCK_OLD: _stock_artifact(OLD_SERIES),
            STOCK: _stock_artifact(NEW_SERIES),
        }
        if unknown := self._given.keys() - artifacts.keys():
            raise LabError(f"there is no build {', '.join(sorted(unknown))}, there are {', '.join(artifacts)}")
        found = {name: get_outer_qemu(self._cache, path, self._progress) for name, path in artifacts.items()}
        return {name: self._given.get(name, folder) for name, folder in found.items()}


def _stock_artifact(series: str) -> Path:
    found = sorted(STOCK_ARTIFACTS.glob(f"qemu-{series}.*.tar.gz"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabError(f"no stock QEMU {series} in {STOCK_ARTIFACTS}: tests/tools/builds.py --stock builds it")
    return found[-1]
