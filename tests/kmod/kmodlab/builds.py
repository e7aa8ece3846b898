# SPDX-License-Identifier: GPL-3.0-or-later
"""All modules that the tests load: cores of different source, and what has to be refused or has to go wrong."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.build import KmodBuilder, KmodPlan, KmodSpec
from vmmlab.progress import Progress

# The control of the MSR caches is the series without the patch that makes them one.
SHARED_CACHE_PATCH = "0005-kvm-x86-have-the-user-return-MSRs-cached-by-kvm-thin.patch"
# The control of the sampling is kvm_thin without the call that does it when a CPU comes online.
SAMPLING_CALL = "\tthin_uret_online();\n"


@dataclass(frozen=True)
class Modules:
    """``files``: name that the test's guest loads it by → module. ``names``: variable of the guest → name of a core.

    ``artifacts``: the same variable → the artifact of the core.
    """

    files: dict[str, bytes]
    names: dict[str, str]
    artifacts: dict[str, Path]


class ModuleBuilds:
    """Builds with the sources in ``kmod`` for ``series``, in ``root``; ``older`` is the tarball of a kernel source before that
    of ``root``, ``scratch`` an empty folder for changed sources.
    """

    def __init__(
        self,
        kmod: Path,
        series: str,
        root: Path,
        older: Path,
        release: str,
        dest: Path,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._scratch = scratch
        self._work = root / "var" / "tmp" / "kmod"
        self._builder = KmodBuilder(root, self._work, dest, progress.say)
        self._spec = KmodSpec(
            series=series,
            release=release,
            source=root / "usr" / "src" / f"linux-source-{series}.tar.xz",
            patches=kmod / "patches" / series,
            overlay=kmod / "overlay",
            thin=kmod / "kvm_thin",
            jobs=1,
        )
        self._fixes = kmod / "fixes" / series
        self._older = older

    def all(self) -> Modules:
        """Build what is not there yet. Raises ``LiveUpgradeError``."""
        files: dict[str, bytes] = {}
        names: dict[str, str] = {}
        artifacts: dict[str, Path] = {}
        cores = {
            "A": ("core_a", self._spec),
            "B": ("core_b", replace(self._spec, fixes=self._fixes)),
            "OLDER": ("core_older", replace(self._spec, source=self._older)),
            "SPLIT": ("core_split", replace(self._spec, patches=self._split_caches())),
            "NEWER": ("core_newer", replace(self._spec, thin=self._newer_interface())),
        }
        for variable, (file, spec) in cores.items():
            plan = self._builder.plan(spec)
            artifact = self._builder.build(plan)
            files[file] = _member(artifact, f"kvm_core_{plan.name}.ko")
            names[variable] = plan.name
            artifacts[variable] = artifact
            if variable == "A":
                files["kvm_thin"] = _member(artifact, "kvm_thin.ko")
        files["kvm_thin_debug"] = self._thin(self._builder.plan(replace(self._spec, debug=True)))
        files["kvm_thin_unsampled"] = self._thin(self._builder.plan(replace(self._spec, thin=self._unsampled())))
        return Modules(files, names, artifacts)

    def _thin(self, plan: KmodPlan) -> bytes:
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            return self._builder.build_thin(plan, Path(folder) / "kvm_thin").read_bytes()

    def _split_caches(self) -> Path:
        patches = self._copy(self._spec.patches, "split")
        series = (patches / "series").read_text()
        (patches / "series").write_text(_without(series, f"{SHARED_CACHE_PATCH}\n"))
        return patches

    def _newer_interface(self) -> Path:
        thin = self._copy(self._spec.thin, "newer")
        header = (thin / "kvm_thin.h").read_text()
        old = "#define KVM_THIN_ABI\t\t1\n"
        (thin / "kvm_thin.h").write_text(_without(header, old) + "#undef KVM_THIN_ABI\n#define KVM_THIN_ABI 2\n")
        return thin

    def _unsampled(self) -> Path:
        thin = self._copy(self._spec.thin, "unsampled")
        (thin / "hardware.c").write_text(_without((thin / "hardware.c").read_text(), SAMPLING_CALL))
        return thin

    def _copy(self, source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, self._scratch / name))


def _without(text: str, part: str) -> str:
    if text.count(part) != 1:
        raise ValueError(f"{part!r} is there {text.count(part)} times: the control would not be one")
    return text.replace(part, "")


def _member(artifact: Path, name: str) -> bytes:
    with tarfile.open(artifact) as archive:
        stream = archive.extractfile(name)
        assert stream is not None
        return stream.read()
