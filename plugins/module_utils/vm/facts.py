# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about one running VM. Values only; ``discovery`` fills them. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class QmpEndpoint:
    """A QMP monitor on a UNIX socket. ``path`` as the VM sees it; ``state`` is ``ok``, ``busy`` or ``dead``."""

    path: str
    state: str
    detail: str


@dataclass(frozen=True)
class RamBlock:
    """One block of guest memory or firmware. ``shared`` is null when it cannot be told.

    ``backing``: ``memfd``, ``shm``, ``file:PATH``, ``device:PATH``, ``anonymous`` or ``unknown``. ``backend`` is true for
    memory of a ``memory-backend-*`` object, false for what QEMU allocates by itself (video memory, option ROMs).
    """

    id: str
    size_bytes: int
    shared: bool | None
    backing: str
    backend: bool


@dataclass(frozen=True)
class Disk:
    """One drive of the guest. ``files`` are the image and its backing chain, as paths the VM sees."""

    id: str
    node: str
    format: str
    read_only: bool
    files: list[str]


@dataclass(frozen=True)
class Nic:
    """One network back end. ``backend`` is the netdev's type, ``interface`` the tap, ``model`` the guest's device."""

    id: str
    backend: str
    model: str | None
    mac: str | None
    interface: str | None
    vhost: bool


@dataclass(frozen=True)
class Passthrough:
    """A device of the host given to the guest. ``host`` is its address or path."""

    id: str
    driver: str
    host: str
    iommufd: bool


@dataclass(frozen=True)
class VfioUse:
    """By what the process has VFIO devices: ``groups`` of legacy containers, and ``cdevs`` of iommufd.

    ``mappings_can_move``: whether the kernel can give their DMA mappings to another process, null when it cannot be told.
    ``counted_for_user``: whether what iommufd has pinned counts for the user of the process, null without one.
    """

    groups: list[str]
    cdevs: list[str]
    mappings_can_move: bool | None
    counted_for_user: bool | None = None


@dataclass(frozen=True)
class LockedMemory:
    """``locked_kib``: what counts as locked, with the pinned pages of legacy containers; ``pinned_kib``: those of iommufd.

    ``limit_kib``: RLIMIT_MEMLOCK, null for none; a process may raise it to ``hard_limit_kib`` by itself. ``exempt``:
    whether a new process has CAP_IPC_LOCK, to which neither applies.
    """

    locked_kib: int
    pinned_kib: int
    limit_kib: int | None
    hard_limit_kib: int | None
    exempt: bool


@dataclass(frozen=True)
class Hotplugged:
    """Something added after the start: ``kind`` is ``device``, ``netdev``, ``blockdev``, ``object`` or ``chardev``."""

    kind: str
    id: str
    type: str


@dataclass(frozen=True)
class Mechanism:
    """Whether one mechanism can move the VM as far as the VM itself is concerned, and why not or under what terms."""

    possible: bool
    reasons: list[str]


@dataclass
class Vm:
    """One running VM; docs/architecture.md describes the fields. Null or empty is "not known" where ``problems`` say so."""

    name: str
    pid: int
    start_time_ticks: int
    exe: str
    exe_deleted: bool
    build_id: str | None
    gnu_build_id: str | None
    version: str | None
    argv: list[str]
    unit: str | None
    cgroup: str | None
    uid: int
    gid: int
    stopped: bool = False
    security_label: str | None = None
    qmp_endpoints: list[QmpEndpoint] = field(default_factory=list)
    other_monitors: list[str] = field(default_factory=list)
    status: str | None = None
    migration_status: str | None = None
    migration_blockers: list[str] = field(default_factory=list)
    cpr_vfork: bool = False
    vfork_blockers: list[str] | None = None
    machine_type: str | None = None
    accelerator: str | None = None
    kvm_device: str | None = None
    ram_blocks: list[RamBlock] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    passthrough: list[Passthrough] = field(default_factory=list)
    vfio: VfioUse | None = None
    locked_memory: LockedMemory | None = None
    hotplugged: list[Hotplugged] = field(default_factory=list)
    mechanisms: dict[str, Mechanism] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready values."""
        return dataclasses.asdict(self)

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version as numbers, empty when it is not known."""
        return tuple(int(part) for part in (self.version or "").split(".") if part.isdigit())
