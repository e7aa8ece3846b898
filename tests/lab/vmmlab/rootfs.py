# SPDX-License-Identifier: GPL-3.0-or-later
"""The userland of a lab host: Debian 12, as a tar."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .cache import Cache
from .mirrors import source_lines
from .progress import LabError, Progress

SUITE = "bookworm"
PACKAGES = """
    systemd-sysv udev dbus kmod openssh-server python3 iproute2 iputils-ping procps socat util-linux e2fsprogs
    libaio1 liburing2 libfdt1 libglib2.0-0 libseccomp2 libslirp0 libpixman-1-0 libnuma1 libcap-ng0 zlib1g libzstd1
    libgnutls30 libpmem1 libbpf1 libudev1
""".split()
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]


def get_rootfs(cache: Cache, progress: Progress) -> Path:
    """``root.tar`` of the host's userland, from the cache or built into it (as root, or in a user namespace)."""

    def build(folder: Path) -> None:
        progress.say("installing Debian 12 for the hosts with mmdebstrap")
        command = [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=" + ("root" if os.geteuid() == 0 else "unshare"),
            "--include=" + ",".join(PACKAGES),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            SUITE,
            str(folder / "root.tar"),
            *source_lines(SUITE),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise LabError("mmdebstrap is missing: install the package mmdebstrap") from None
        if done.returncode != 0:
            raise LabError("mmdebstrap failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))

    material = {"format": 1, "suite": SUITE, "packages": PACKAGES, "left_out": LEFT_OUT}
    return cache.entry("rootfs", material, build) / "root.tar"
