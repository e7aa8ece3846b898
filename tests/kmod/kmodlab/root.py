# SPDX-License-Identifier: GPL-3.0-or-later
"""A root of the Debian of a kernel, with compiler, headers and source: modules must be built with the kernel's own tools."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vmmlab.cache import Cache
from vmmlab.generation import DEFAULT, Generation
from vmmlab.kernel import Kernel
from vmmlab.mirrors import source_lines
from vmmlab.progress import LabError, Progress

# For modules the first two; the last to boot the kit for real machines; the others for whole kernels (vmmlab/own_kernel.py).
TOOLS = ["gcc", "make", "bc", "bison", "flex", "libelf-dev", "libssl-dev", "openssl", "kexec-tools"]
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]


def get_build_root(cache: Cache, kernel: Kernel, progress: Progress, generation: Generation = DEFAULT) -> Path:
    """The root to build modules for ``kernel`` in, from the cache or made into it."""
    if os.geteuid() != 0:
        raise LabError(
            "modules are built in a root of the kernel's Debian, and to change root takes root: run this as root"
        )
    packages = [
        *TOOLS,
        f"linux-headers-{kernel.release}={kernel.version}",
        f"linux-source-{generation.series}={kernel.version}",
    ]

    def build(folder: Path) -> None:
        progress.say(f"installing compiler, headers and source for {kernel.release} with mmdebstrap")
        command = [
            "mmdebstrap",
            "--variant=apt",
            "--mode=root",
            "--include=" + ",".join(packages),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            generation.suite,
            str(folder / "root"),
            *source_lines(generation.suite),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError("mmdebstrap failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))

    material = {"format": 1, "suite": generation.suite, "packages": packages, "left_out": LEFT_OUT}
    return cache.entry("kmod-root", material, build) / "root"
