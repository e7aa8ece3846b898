# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk every lab host starts from, and the initial root that mounts it.

Files of the disk belong to root and to others, so it is put together as root: really, or in a user namespace by a
worker process (``python3 -m vmmlab.image``).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .artifact import Artifact, read_artifact, unpack
from .cache import Cache, file_sha256
from .cpio import CpioArchive
from .guest import BUSYBOX, add_modules
from .kernel import HOST_BOOT_MODULES, Kernel
from .progress import LabError, Progress

HOST_FILES = Path(__file__).resolve().parent.parent / "hostfiles"
DISK_SIZE = "4G"
BUILDS = "var/lib/vmm-live-upgrade/builds"
VMM_ID = 990
UNWANTED_UNITS = """
    systemd-timesyncd.service systemd-update-utmp.service systemd-journal-flush.service systemd-binfmt.service
    systemd-pstore.service systemd-random-seed.service systemd-network-generator.service
    systemd-networkd-wait-online.service systemd-update-utmp-runlevel.service systemd-firstboot.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-logind.service getty@tty1.service serial-getty@ttyS0.service systemd-hwdb-update.service
""".split()


@dataclass(frozen=True)
class HostImage:
    """What all hosts share."""

    disk: Path
    initrd: Path
    kernel: Kernel


def get_image(
    cache: Cache, rootfs: Path, kernel: Kernel, guest: Path, artifacts: list[Artifact], progress: Progress
) -> HostImage:
    """The image with these builds on it, from the cache or built into it."""
    files = {str(p.relative_to(HOST_FILES)): file_sha256(p) for p in sorted(HOST_FILES.rglob("*")) if p.is_file()}
    material = {
        "format": 4,
        "rootfs": rootfs.parent.name,
        "kernel": kernel.folder.name,
        "guest": guest.name,
        "files": files,
        "unwanted": UNWANTED_UNITS,
        "builds": [[artifact.build_id, artifact.sha256] for artifact in artifacts],
    }

    def build(folder: Path) -> None:
        progress.say("making the hosts' disk with " + ", ".join(artifact.build_id for artifact in artifacts))
        (folder / "initrd").write_bytes(_initrd(kernel))
        request = {
            "folder": str(folder),
            "rootfs": str(rootfs),
            "modules": str(kernel.folder / "lib/modules"),
            "release": kernel.release,
            "guest": str(guest),
            "artifacts": [str(artifact.path) for artifact in artifacts],
        }
        prefix = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"]
        command = [*prefix, sys.executable, "-m", "vmmlab.image", json.dumps(request)]
        done = subprocess.run(command, cwd=HOST_FILES.parent, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"the hosts' disk could not be made:\n{done.stderr}")

    folder = cache.entry("image", material, build)
    return HostImage(folder / "disk.raw", folder / "initrd", kernel)


def _initrd(kernel: Kernel) -> bytes:
    archive = CpioArchive()
    for name in ("proc", "sys", "dev", "root", "bin"):
        archive.folder(name)
    archive.copy("bin/busybox", BUSYBOX)
    archive.file("init", (HOST_FILES / "initrd/init").read_bytes(), 0o755)
    add_modules(archive, kernel.modules(HOST_BOOT_MODULES))
    packed = gzip.compress(archive.data(), 6, mtime=0)
    return packed + bytes(-len(packed) % 512)  # each host's own archive follows


def assemble(request: dict[str, object]) -> None:
    """Worker, as root: unpack everything into one tree and make an ext4 file system of it."""
    folder = Path(str(request["folder"]))
    root = folder / "root"
    try:
        root.mkdir()
        # Device nodes cannot be made in a user namespace, and devtmpfs has them.
        unpack_root = ["tar", "-C", str(root), "--numeric-owner", "--exclude=./dev/*", "-xpf", str(request["rootfs"])]
        subprocess.run(unpack_root, check=True)
        _add_system(root, Path(str(request["modules"])), str(request["release"]))
        _add_builds(root, [Path(path) for path in request["artifacts"]])  # type: ignore[attr-defined]
        shutil.copytree(str(request["guest"]), root / "usr/local/lib/vmm-lab/guest")
        _make_disk(root, folder / "disk.raw")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _add_system(root: Path, modules: Path, release: str) -> None:
    shutil.copytree(modules, root / "usr/lib/modules", dirs_exist_ok=True)
    subprocess.run(["chroot", str(root), "/sbin/depmod", release], check=True)
    shutil.copytree(HOST_FILES / "root", root, dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    for unit in UNWANTED_UNITS:
        (units / unit).symlink_to("/dev/null")
    (units / "multi-user.target.wants/systemd-networkd.service").symlink_to(
        "/lib/systemd/system/systemd-networkd.service"
    )
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/fstab").write_text("")  # the initial root has mounted all there is
    _add_user(root)
    for unused in (root / "boot", root / "var/cache/apt"):
        shutil.rmtree(unused, ignore_errors=True)


def _add_user(root: Path) -> None:
    """The unprivileged user that VMs run as."""
    lines = {
        "passwd": f"vmm:x:{VMM_ID}:{VMM_ID}:lab VMs:/nonexistent:/usr/sbin/nologin\n",
        "group": f"vmm:x:{VMM_ID}:\n",
        "shadow": "vmm:!:20000::::::\n",
    }
    for name, line in lines.items():
        with open(root / "etc" / name, "a") as stream:
            stream.write(line)


def _add_builds(root: Path, artifacts: list[Path]) -> None:
    builds = root / BUILDS
    builds.mkdir(parents=True)
    for number, path in enumerate(artifacts):
        artifact = read_artifact(path)
        unpack(artifact, builds / artifact.build_id)
        if number == 0:
            (builds / "default").symlink_to(artifact.build_id)
    for path in [builds, *builds.rglob("*")]:
        os.chown(path, 0, 0, follow_symlinks=False)


def _make_disk(root: Path, disk: Path) -> None:
    options = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    command = ["mke2fs", "-q", "-t", "ext4", "-J", "size=16", "-E", options, "-d", str(root), str(disk), DISK_SIZE]
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    assemble(json.loads(sys.argv[1]))
