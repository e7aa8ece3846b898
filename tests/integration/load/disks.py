# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of disks that a loaded VM can have."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RAW_BYTES = 1 << 20
QCOW2_BYTES = 16 << 20


@dataclass(frozen=True)
class Disk:
    """``options``: words for QEMU, in which ``{path}`` is the image."""

    name: str
    image_format: str
    options: tuple[str, ...]


# Slow on purpose where throttled: then requests always wait when the VM is stopped.
DISKS = [
    Disk("drive-raw", "raw", ()),  # what every VM of these tests has
    Disk(
        "blockdev-raw",
        "raw",
        (
            *("-blockdev", "driver=file,node-name=f1,filename={path},cache.direct=on,aio=threads"),
            *("-blockdev", "driver=raw,node-name=d1,file=f1", "-device", "virtio-blk-pci,id=hd1,drive=d1"),
        ),
    ),
    Disk(
        "drive-qcow2",
        "qcow2",
        (
            *("-drive", "if=none,id=d2,format=qcow2,cache=none,file={path}"),
            *("-device", "virtio-blk-pci,id=hd2,drive=d2"),
        ),
    ),
    Disk(
        "blockdev-qcow2-iothread",
        "qcow2",
        (
            *("-object", "iothread,id=io3", "-blockdev", "driver=file,node-name=f3,filename={path}"),
            *("-blockdev", "driver=qcow2,node-name=d3,file=f3"),
            *("-device", "virtio-blk-pci,id=hd3,drive=d3,iothread=io3"),
        ),
    ),
    Disk(
        "drive-throttled",
        "raw",
        (
            *("-drive", "if=none,id=d4,format=raw,file={path},throttling.iops-total=200"),
            *("-device", "virtio-blk-pci,id=hd4,drive=d4"),
        ),
    ),
    Disk(
        "blockdev-throttled-iothread",
        "raw",
        (
            *("-object", "iothread,id=io5", "-object", "throttle-group,id=tg5,x-iops-total=200"),
            *("-blockdev", "driver=file,node-name=f5,filename={path}"),
            *("-blockdev", "driver=throttle,node-name=d5,throttle-group=tg5,file=f5"),
            *("-device", "virtio-blk-pci,id=hd5,drive=d5,iothread=io5"),
        ),
    ),
]


@dataclass(frozen=True)
class DiskSet:
    """Images of all kinds, in the order in which the guest sees them, and the words that give them to QEMU."""

    disks: Sequence[Disk]
    images: list[Path]
    arguments: Sequence[str]

    @classmethod
    def create(cls, directory: Path, vm_directory: Path, disks: Sequence[Disk]) -> DiskSet:
        """Make the images in ``directory``; the first is the one that the VM makes for itself in ``vm_directory``."""
        images, arguments = [vm_directory / "boot.img"], []
        for disk in disks[1:]:
            images.append(directory / f"{disk.name}.img")
            _create(images[-1], disk.image_format)
            arguments += [word.format(path=images[-1]) for word in disk.options]
        return cls(disks, images, arguments)


def _create(image: Path, image_format: str) -> None:
    size = {"raw": RAW_BYTES, "qcow2": QCOW2_BYTES}[image_format]
    # Small clusters: the image's tables are written all the time.
    options = ["-o", "cluster_size=4k"] if image_format == "qcow2" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(image), str(size)], check=True)
