# SPDX-License-Identifier: GPL-3.0-or-later
"""All modules that the tests load: cores of different source, and what has to be refused or has to go wrong."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.build import KmodBuilder, KmodSpec
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kbuild import Kbuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.signing import Signing
from vmmlab.own_kernel import OwnKernel
from vmmlab.progress import Progress

# The control of the MSR caches is the series without the patch that makes them one.
SHARED_CACHE_PATCH = "0005-kvm-x86-have-the-user-return-MSRs-cached-by-kvm-thin.patch"
# The control of the sampling is kvm_thin without the call that does it when a CPU comes online.
SAMPLING_CALL = "\tthin_uret_online();\n"
# The control of what a kernel finds that checks itself is kvm_thin with a core's memory lost when the core comes, and with
# its two locks taken the wrong way round when the list of cores is read.
ALLOCATION = "\tcore = kzalloc(sizeof(*core), GFP_KERNEL);\n"
LIST_LOCK = "\tint n = 0;\n\n\tguard(mutex)(&thin_lock);\n"
LOCKS_THE_WRONG_WAY_ROUND = LIST_LOCK.replace(
    "\tguard",
    "\tcpus_read_lock();\n\tmutex_lock(&thin_lock);\n\tmutex_unlock(&thin_lock);\n\tcpus_read_unlock();\n\tguard",
)
MODULE_HEADER = "#include <linux/module.h>\n"


@dataclass(frozen=True)
class Modules:
    """``files``: name that the test's guest loads it by → module. ``names``: variable of the guest → name of a core.

    ``artifacts``: the same variable → the artifact, of those cores that the modules of the collection are to have.
    """

    files: dict[str, bytes]
    names: dict[str, str]
    artifacts: dict[str, Path]


class ModuleBuilds:
    """Builds with the sources in ``kmod`` for ``series``, in ``root``, for the kernel ``release``; ``scratch`` is an empty folder
    for changed sources.
    """

    def __init__(
        self, kmod: Path, series: str, root: Path, release: str, dest: Path, scratch: Path, progress: Progress
    ) -> None:
        self._scratch = scratch
        self._root = root
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

    def all(self, older: Path) -> Modules:
        """Build what the cases on Debian's kernel load, as far as it is not there yet. Raises ``LiveUpgradeError``.

        ``older`` is the tarball of a kernel source before that in the root.
        """
        cores = {
            "A": ("core_a", self._spec),
            "B": ("core_b", replace(self._spec, fixes=self._fixes)),
            "OLDER": ("core_older", replace(self._spec, source=older)),
            "SPLIT": ("core_split", replace(self._spec, patches=self._split_caches())),
            "NEWER": ("core_newer", replace(self._spec, thin=self._newer_interface())),
        }
        modules = self._cores(cores, ("A", "B", "NEWER"))
        modules.files["kvm_thin_debug"] = self._thin(replace(self._spec, debug=True))
        modules.files["kvm_thin_unsampled"] = self._thin(replace(self._spec, thin=self._unsampled()))
        modules.files["kvm_thin_faulty"] = self._thin(replace(self._spec, thin=self._faulty()))
        return modules

    def for_debugging(self, kernel: OwnKernel) -> Modules:
        """Build what the cases on a kernel of our own load. It trusts who signed core A, and has never heard of who signed B."""
        cores = {
            "A": ("core_a", replace(self._spec, signing=Signing(kernel.signing_key, kernel.certificate))),
            "B": ("core_b", replace(self._spec, fixes=self._fixes, signing=self._foreign_key())),
        }
        modules = self._cores(cores, tuple(cores))
        modules.files["kvm_thin_faulty"] = self._thin(replace(self._spec, thin=self._faulty()))
        return modules

    def pair(self) -> Modules:
        """Build the cores A and B, and kvm_thin: what two VMs, or one that goes from one to the other, can be on."""
        cores = {"A": ("core_a", self._spec), "B": ("core_b", replace(self._spec, fixes=self._fixes))}
        return self._cores(cores, tuple(cores))

    def _cores(self, cores: dict[str, tuple[str, KmodSpec]], packed: tuple[str, ...]) -> Modules:
        """``cores``: variable of the guest → name of the file there, and what to build. kvm_thin is that of the core A."""
        modules = Modules({}, {}, {})
        for variable, (file, spec) in cores.items():
            plan = self._builder.plan(spec)
            artifact = self._builder.build(plan)
            modules.files[file] = _member(artifact, f"kvm_core_{plan.name}.ko")
            modules.names[variable] = plan.name
            if variable in packed:
                modules.artifacts[variable] = artifact
            if variable == "A":
                modules.files["kvm_thin"] = _member(artifact, "kvm_thin.ko")
        return modules

    def _thin(self, spec: KmodSpec) -> bytes:
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            return self._builder.build_thin(self._builder.plan(spec), Path(folder) / "kvm_thin").read_bytes()

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

    def _foreign_key(self) -> Signing:
        """A key that no kernel knows of. It is made once: a core that is signed with another is another build."""
        key, certificate = self._work / "foreign_key.pem", self._work / "foreign_key.x509"
        if not certificate.exists():
            self._work.mkdir(parents=True, exist_ok=True)
            kbuild = Kbuild(self._root, self._spec.release)
            kbuild.run(
                *(
                    "openssl",
                    "req",
                    "-new",
                    "-x509",
                    "-batch",
                    "-nodes",
                    "-sha256",
                    "-days",
                    "36500",
                    "-newkey",
                    "rsa:2048",
                ),
                *(
                    "-subj",
                    "/CN=nobody",
                    "-keyout",
                    kbuild.inside(key),
                    "-outform",
                    "DER",
                    "-out",
                    kbuild.inside(certificate),
                ),
            )
        return Signing(key, certificate)

    def _faulty(self) -> Path:
        thin = self._copy(self._spec.thin, "faulty")
        core = (thin / "core.c").read_text()
        (thin / "core.c").write_text(_with(core, ALLOCATION, ALLOCATION * 2))
        device = _with((thin / "device.c").read_text(), LIST_LOCK, LOCKS_THE_WRONG_WAY_ROUND)
        (thin / "device.c").write_text(_with(device, MODULE_HEADER, f"#include <linux/cpu.h>\n{MODULE_HEADER}"))
        return thin

    def _copy(self, source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, self._scratch / name))


def _without(text: str, part: str) -> str:
    return _with(text, part, "")


def _with(text: str, part: str, other: str) -> str:
    """``text`` with ``other`` in the place of ``part``."""
    if text.count(part) != 1:
        raise ValueError(f"{part!r} is there {text.count(part)} times: the control would not be one")
    return text.replace(part, other)


def _member(artifact: Path, name: str) -> bytes:
    with tarfile.open(artifact) as archive:
        stream = archive.extractfile(name)
        assert stream is not None
        return stream.read()
