# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a QEMU artifact: source, patches, configure, ninja, firmware, vmstate dumps, manifest, SBOM, archive.

The build id is a digest over everything that goes in, so it is known before anything is compiled and the same inputs
give the same id. PRIVATE to the collection.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.digest import sha256_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.manifest import Manifest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.pack import finished, pack
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.sbom import write_sbom
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.source import (
    Candidate,
    Patch,
    Source,
    apply_patches,
    lay_over,
    obtain,
    read_overlay,
    read_series,
    unpack,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.typed_manifest import SCHEMA
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

# Part of every build id: raise it when a change here makes another artifact out of the same inputs.
RECIPE = 2
BUILD_TOOLS = ("meson==1.12.1", "pycotap==1.3.1", "qemu.qmp==0.0.6", "setuptools==80.9.0", "wheel==0.45.1")
BINARY = "qemu-system-x86_64"
_FIRMWARE_NEEDED = (
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "multiboot_dma.bin",
    "pvh.bin",
    "vgabios-stdvga.bin",
    "efi-virtio.rom",
    "efi-e1000e.rom",
)
_FIRMWARE_WANTED = (
    "bios.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "linuxboot.bin",
    "multiboot.bin",
    "vgabios-virtio.bin",
    "vgabios-cirrus.bin",
    "vgabios-qxl.bin",
    "vgabios-bochs-display.bin",
    "vgabios-ramfb.bin",
    "efi-e1000.rom",
    "efi-rtl8139.rom",
    "efi-pcnet.rom",
    "efi-vmxnet3.rom",
    "pxe-virtio.rom",
)
_TOOLS = {"gcc": "gcc", "ninja": "ninja-build", "pkg-config": "pkg-config", "patch": "patch", "bzip2": "bzip2"}
_TOOLS |= {"xz": "xz-utils", "make": "make", "bison": "bison", "flex": "flex", "strip": "binutils"}
_LIBRARIES = {"glib-2.0": "libglib2.0-dev", "zlib": "zlib1g-dev"}
_OPTION_LIBRARIES = {
    "--enable-pixman": ("pixman-1", "libpixman-1-dev"),
    "--enable-slirp": ("slirp", "libslirp-dev"),
    "--enable-seccomp": ("libseccomp", "libseccomp-dev"),
    "--enable-cap-ng": ("libcap-ng", "libcap-ng-dev"),
    "--enable-linux-io-uring": ("liburing", "liburing-dev"),
}


class BuildError(LiveUpgradeError):
    """The build cannot begin or did not succeed."""


@dataclass(frozen=True)
class BuildSpec:
    """What to build. ``jobs``: compiler processes at once.

    ``patches``: directory with a ``series`` file. ``overlay``: directory of new files, which the patches hook in.
    """

    series: str
    candidates: Sequence[Candidate]
    configure: Sequence[str]
    firmware_dirs: Sequence[str]
    jobs: int
    patches: Path | None = None
    overlay: Path | None = None
    ccache: bool = True


@dataclass(frozen=True)
class BuildPlan:
    """A build with its inputs at hand and its id."""

    build_id: str
    version: str
    spec: BuildSpec
    source: Source
    patches: list[Patch]
    overlay: list[Patch]
    firmware: dict[str, Path] = field(hash=False)
    compiler: str

    @property
    def artifact_name(self) -> str:
        """File name of the artifact."""
        return f"{self.build_id}.tar.gz"


class Builder:
    """Builds artifacts; ``cache`` keeps sources, tools and unfinished builds, ``dest`` receives the artifacts."""

    def __init__(self, cache: Path, dest: Path, say: Callable[[str], None]) -> None:
        """``say`` receives one line for each thing that happens, for a progress file."""
        self._cache = cache
        self._dest = dest
        self._say = say

    def plan(self, spec: BuildSpec) -> BuildPlan:
        """Fetch and verify the inputs and work out the build id. Raises ``LiveUpgradeError``."""
        _check_tools(spec)
        source = obtain(spec.candidates, self._cache / "sources", self._say)
        version = _version_of(source)
        patches = read_series(spec.patches)
        overlay = read_overlay(spec.overlay)
        compiler = _output("gcc", "--version").splitlines()[0]
        firmware = {} if _has_blobs(source) else _find_firmware([Path(path) for path in spec.firmware_dirs])
        inputs = {
            "recipe": RECIPE,
            "tools": BUILD_TOOLS,
            "architecture": platform.machine(),
            "source": source.sha256,
            "patches": [[patch.name, patch.sha256] for patch in patches],
            "overlay": [[file.name, file.sha256] for file in overlay],
            "configure": list(spec.configure),
            "compiler": compiler,
            "firmware": {name: sha256_of(path) for name, path in firmware.items()},
        }
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        return BuildPlan(f"qemu-{version}-{digest}", version, spec, source, patches, overlay, firmware, compiler)

    def finished(self, plan: BuildPlan) -> Path | None:
        """Return the artifact of ``plan`` when it exists and has the digest that was noted when it was made."""
        artifact = self._dest / plan.artifact_name
        return artifact if finished(artifact) else None

    def build(self, plan: BuildPlan) -> Path:
        """Build ``plan`` and return its artifact. On failure the log is kept. Raises ``LiveUpgradeError``.

        When another process builds the same, its result is waited for and taken.
        """
        work = self._cache / "work" / plan.build_id
        work.parent.mkdir(parents=True, exist_ok=True)
        with open(work.with_name(f"{work.name}.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self.finished(plan) or self._build(plan, work)

    def _build(self, plan: BuildPlan, work: Path) -> Path:
        if work.exists():
            shutil.rmtree(work)
        tree, build, prefix = work / "src", work / "build", work / "prefix"
        log = self._log_path(plan)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        self._say(f"building {plan.build_id} in {work}, log {log}")
        unpack(plan.source, tree)
        lay_over(plan.overlay, tree)
        apply_patches(plan.patches, tree)
        _supply_missing_blobs(tree)
        build.mkdir()
        shell = _Shell(build, log, self._say, _environment(work))
        shell.run([str(tree / "configure"), *self._configure(plan)], "configuring")
        shell.run(["ninja", f"-j{plan.spec.jobs}", BINARY], "compiling")
        self._install(plan, tree, build, prefix, shell)
        artifact = self._pack(plan, prefix)
        shutil.rmtree(work)
        return artifact

    def _log_path(self, plan: BuildPlan) -> Path:
        return self._cache / "logs" / f"{plan.build_id}.log"

    def _configure(self, plan: BuildPlan) -> list[str]:
        compiler = "ccache gcc" if plan.spec.ccache and shutil.which("ccache") else "gcc"
        return [
            f"--python={self._tools_python()}",
            f"--cc={compiler}",
            f"--with-pkgversion=vmm.live_upgrade build {plan.build_id}",
            "--disable-download",
            *([] if _has_blobs(plan.source) else ["--disable-install-blobs"]),
            *plan.spec.configure,
        ]

    def _tools_python(self) -> Path:
        """Return the python of a virtual environment that holds QEMU's build tools, made once."""
        key = hashlib.sha256(repr((BUILD_TOOLS, sys.version)).encode()).hexdigest()[:16]
        environment = self._cache / "tools" / key
        if not (environment / "complete").exists():
            self._say("installing the build tools (meson and others) from the Python package index")
            shutil.rmtree(environment, ignore_errors=True)
            _output(sys.executable, "-m", "venv", str(environment))
            _output(str(environment / "bin" / "pip"), "install", "--quiet", *BUILD_TOOLS)
            (environment / "complete").touch()
        return environment / "bin" / "python3"

    def _install(self, plan: BuildPlan, tree: Path, build: Path, prefix: Path, shell: _Shell) -> None:
        """Lay out a relocatable prefix: QEMU finds ``share/qemu`` beside its ``bin``."""
        share = prefix / "share" / "qemu"
        (prefix / "bin").mkdir(parents=True)
        share.mkdir(parents=True)
        binary = prefix / "bin" / BINARY
        shutil.copy2(build / BINARY, binary)
        shell.run(["strip", "--strip-unneeded", str(binary)], "stripping")
        shutil.copytree(tree / "pc-bios" / "keymaps", share / "keymaps", ignore=shutil.ignore_patterns("meson.build"))
        firmware = plan.firmware or _find_firmware([tree / "pc-bios"])
        for name, path in firmware.items():
            shutil.copy(path, share / name)
        machine_types = self._dump_vmstates(binary, prefix / "vmstate")
        libraries = sorted(set(re.findall(r"^\s*(\S+) => ", _output("ldd", str(binary)), re.MULTILINE)))
        manifest = Manifest(
            schema=SCHEMA,
            kind=Manifest.KIND,
            build_id=plan.build_id,
            version=plan.version,
            series=plan.spec.series,
            source={"name": plan.source.name, "sha256": plan.source.sha256},
            patches=[{"name": patch.name, "sha256": patch.sha256} for patch in plan.patches],
            overlay=[{"name": file.name, "sha256": file.sha256} for file in plan.overlay],
            configure=list(plan.spec.configure),
            compiler=plan.compiler,
            architecture=platform.machine(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            machine_types=machine_types,
            capabilities=_capabilities(binary),
            files={},
            gnu_build_id=_gnu_build_id(binary),
            libraries=libraries,
        )
        write_sbom(prefix / "sbom.cdx.json", manifest, prefix)
        files = {str(path.relative_to(prefix)): sha256_of(path) for path in sorted(prefix.rglob("*")) if path.is_file()}
        Manifest.from_dict({**manifest.to_dict(), "files": files}).write(prefix)

    def _dump_vmstates(self, binary: Path, directory: Path) -> list[str]:
        """Write what the binary says of its migration format for every versioned machine type, and return the types."""
        directory.mkdir()
        listed = _output(str(binary), "-machine", "help").splitlines()
        types = sorted(line.split()[0] for line in listed if re.match(r"(pc-q35|pc-i440fx)-\d|microvm\s", line))
        self._say(f"dumping the migration format of {len(types)} machine types")
        for machine in types:
            path = directory / f"{machine}.json"
            _output(str(binary), "-machine", machine, "-dump-vmstate", str(path))
            path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":"), sort_keys=True))
        return types

    def _pack(self, plan: BuildPlan, prefix: Path) -> Path:
        artifact = self._dest / plan.artifact_name
        pack(prefix, artifact)
        self._say(f"artifact {artifact}, {artifact.stat().st_size >> 20} MiB")
        return artifact


class _Shell:
    """Runs the steps of a build with their output in its log."""

    def __init__(self, directory: Path, log: Path, say: Callable[[str], None], environment: dict[str, str]) -> None:
        self._directory = directory
        self._log = log
        self._say = say
        self._environment = environment

    def run(self, command: list[str], doing: str) -> None:
        self._say(f"{doing}: {os.path.basename(command[0])}")
        started = time.monotonic()
        told = 0
        with open(self._log, "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            for line in process.stdout or ():
                log.write(line)
                step = re.match(r"\[(\d+)/(\d+)\]", line)
                if step and int(step[1]) * 10 // int(step[2]) > told:
                    told = int(step[1]) * 10 // int(step[2])
                    self._say(f"{doing}: {step[1]} of {step[2]} after {time.monotonic() - started:.0f} s")
        if process.wait():
            raise BuildError(
                f"{doing} failed with status {process.returncode}: {_complaint(self._log)}. Full log: {self._log}"
            )


def default_jobs() -> int:
    """Return how many compiler processes suit this machine."""
    return len(os.sched_getaffinity(0))


def _check_tools(spec: BuildSpec) -> None:
    """Raise ``BuildError`` naming the Debian packages of all that is missing, so that one installation mends it."""
    missing = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if shutil.which("pkg-config"):
        libraries = {
            **_LIBRARIES,
            **dict(pair for option, pair in _OPTION_LIBRARIES.items() if option in spec.configure),
        }
        for library, package in libraries.items():
            if subprocess.run(["pkg-config", "--exists", library], check=False).returncode:
                missing.add(package)
    if missing:
        raise BuildError(f"this machine cannot build QEMU yet; install the Debian packages {' '.join(sorted(missing))}")


def _version_of(source: Source) -> str:
    """Return the version that the source tree itself names."""
    if source.directory is not None:
        return (source.directory / "VERSION").read_text().strip()
    listing = subprocess.run(
        [
            "tar",
            "--wildcards",
            "--no-wildcards-match-slash",
            "--to-stdout",
            "-xf",
            str(source.archives[0]),
            "*/VERSION",
        ],
        capture_output=True,
        check=False,
    )
    version = listing.stdout.decode(errors="replace").splitlines()
    if not version or not re.fullmatch(r"\d+(\.\d+)+", version[0].strip()):
        raise BuildError(f"{source.name} is not a QEMU source: it names no version")
    return version[0].strip()


def _has_blobs(source: Source) -> bool:
    """Tell whether the source brings its firmware; distributions strip it and mark that in the name."""
    if source.directory is not None:
        return (source.directory / "pc-bios" / "bios-256k.bin").exists()
    return "+ds" not in source.archives[0].name and "+dfsg" not in source.archives[0].name


def _find_firmware(directories: Sequence[Path]) -> dict[str, Path]:
    found = {}
    for name in (*_FIRMWARE_NEEDED, *_FIRMWARE_WANTED):
        path = next((directory / name for directory in directories if (directory / name).is_file()), None)
        if path is not None:
            found[name] = path
    missing = [name for name in _FIRMWARE_NEEDED if name not in found]
    if missing:
        raise BuildError(
            f"firmware {', '.join(missing)} is in none of {', '.join(map(str, directories))}; "
            "on Debian install seabios, ipxe-qemu and qemu-system-data"
        )
    return dict(sorted(found.items()))


def _supply_missing_blobs(tree: Path) -> None:
    """Put empty files where meson wants UEFI images and device trees that a stripped source does not have.

    They are never installed: the prefix gets the firmware that is named in the build's inputs.
    """
    listed = re.findall(r"'(edk2-[\w-]+\.fd)'", (tree / "pc-bios" / "meson.build").read_text())
    for name in listed:
        image = tree / "pc-bios" / f"{name}.bz2"
        if not image.exists():
            image.write_bytes(bytes.fromhex("425a683917724538509000000000"))  # bzip2 of nothing
    for source in (tree / "pc-bios" / "dtb").glob("*.dts"):
        source.with_suffix(".dtb").touch()


def _environment(work: Path) -> dict[str, str]:
    """Environment of the build: ccache is told to see through the name of the directory."""
    return {**os.environ, "LC_ALL": "C", "CCACHE_BASEDIR": str(work), "CCACHE_NOHASHDIR": "1"}


def _complaint(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line.strip() for line in lines if re.search(r"\berror\b|ERROR|FAILED", line)]
    return " | ".join((errors or lines)[-3:])[:1000]


def _capabilities(binary: Path) -> list[str]:
    """Ask the binary itself what it can do beyond stock QEMU."""
    words = ('{"execute": "qmp_capabilities"}', '{"execute": "query-cpr-vfork"}', '{"execute": "quit"}')
    done = subprocess.run(
        [str(binary), "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
        input="\n".join(words),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise BuildError(f"the new binary does not answer: {done.stderr.strip()[-300:]}")
    signs = {"cpr-vfork": '"phase"', "cpr-vfork-devices": '"blocked-reasons"'}
    return [capability for capability, sign in signs.items() if sign in done.stdout]


def _gnu_build_id(binary: Path) -> str:
    found = re.search(r"Build ID: ([0-9a-f]+)", _output("readelf", "-n", str(binary)))
    return found[1] if found else ""


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{os.path.basename(command[0])} failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    return done.stdout
