# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: its state on disk, bringing it up, taking it down."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .artifact import get_outer_qemu, read_artifact
from .cache import Cache, content_key, default_root
from .emulator import Emulator, choose_accelerator
from .guest import get_guest
from .host import Host
from .image import HostImage, get_image
from .inventory import inventory_yaml
from .kernel import get_kernel
from .process import ProcessId, end_children
from .progress import LabError, Progress
from .rootfs import get_rootfs
from .ssh import SshAccess, free_port, make_key
from .verify import look_at_host
from .vmspec import PACES, Pace

IMAGES_KEPT = 4
START_TRIES = 3


@dataclass(frozen=True)
class Plan:
    """What ``up`` is asked for."""

    hosts: int
    vms: int
    passthrough: int  # so many of them have a drive of the host passed through
    racks: int
    cpus: int
    memory_mib: int
    outer_qemu: Path
    artifacts: list[Path]
    accelerator: str  # "auto", "tcg" or "kvm"
    tick_us: int  # period of the guests' counters, 0: what the accelerator can bear
    limit_s: float


class Fleet:
    """The lab whose files are in ``state``."""

    def __init__(self, state: Path, progress: Progress) -> None:
        self.state = state.resolve()
        self._progress = progress
        self._control: Path | None = None
        self._pace = PACES["tcg"]
        self.hosts: list[Host] = []

    @property
    def inventory(self) -> Path:
        return self.state / "inventory.yml"

    def load(self) -> Fleet:
        """Read the state of a lab that is up. Raises LabError when there is none."""
        try:
            data = json.loads((self.state / "state.json").read_text())
        except FileNotFoundError:
            raise LabError(f"no lab is up in {self.state}: start one with `lab.py up`") from None
        self._control = Path(data["control"])
        self._pace = Pace(**data["pace"])
        self.hosts = [self._host_from(entry) for entry in data["hosts"]]
        return self

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"the lab has no host {name}: it has {', '.join(host.name for host in self.hosts)}")

    # ---- up ----------------------------------------------------------------------------------------------------

    def up(self, plan: Plan, cache: Cache) -> None:
        """Bring the lab up, or leave nothing. Raises LabError; an interruption cleans up too and goes on."""
        with self._locked():
            self._refuse_or_clear_old()
            try:
                self._up(plan, cache)
            except BaseException:
                self._progress.say("cleaning up")
                end_children()
                self._remove()
                raise

    def _up(self, plan: Plan, cache: Cache) -> None:
        emulator, image = self._ingredients(plan, cache)
        if plan.passthrough and emulator.accelerator != "tcg":
            self._progress.say(
                "devices are passed through on emulated hosts only (--accel tcg): VMs have virtual disks"
            )
            plan = replace(plan, passthrough=0)
        key = self._create_state(plan)
        public_keys = [host.prepare(image, key) for host in self.hosts]
        for host in self.hosts:
            self._start(host, emulator, image, plan)
        lines = [f"[127.0.0.1]:{h.access.port} {key}\n" for h, key in zip(self.hosts, public_keys)]
        (self.state / "known_hosts").write_text("".join(lines))
        self.inventory.write_text(inventory_yaml(self.hosts))
        self._each(lambda host: self._wait(host, plan.limit_s))
        vms = sum(host.vm_count for host in self.hosts)
        self._progress.say(f"up: {len(self.hosts)} hosts, {vms} VMs ({emulator.accelerator}); {self.inventory}")

    def _ingredients(self, plan: Plan, cache: Cache) -> tuple[Emulator, HostImage]:
        artifacts = [read_artifact(path) for path in plan.artifacts]
        outer = get_outer_qemu(cache, plan.outer_qemu, self._progress)
        with ThreadPoolExecutor() as pool:
            rootfs = pool.submit(get_rootfs, cache, self._progress)
            guest_kernel = pool.submit(get_kernel, cache, "guest", self._progress)
            kernel = get_kernel(cache, "host", self._progress)
            guest = get_guest(cache, guest_kernel.result(), self._progress)
            image = get_image(cache, rootfs.result(), kernel, guest, artifacts, self._progress)
        for removed in cache.prune("image", IMAGES_KEPT):
            self._progress.say(f"removed the unused image {removed.name}")
        accelerator = plan.accelerator
        if accelerator == "auto":
            accelerator = choose_accelerator(cache, outer, image, self._progress)
        self._pace = PACES[accelerator]
        if plan.tick_us:
            self._pace = replace(self._pace, tick_us=plan.tick_us)
        return Emulator(outer, accelerator), image

    def _create_state(self, plan: Plan) -> str:
        """Folders, keys and names. Returns the public key that hosts let in."""
        self.state.mkdir(parents=True, mode=0o700)
        self._control = Path(tempfile.mkdtemp(prefix="vmm-lab-"))  # short: socket paths have 107 bytes
        self.hosts = [
            self._host_from(
                {
                    "name": f"h{n}",
                    "vms": plan.vms,
                    "passthrough": plan.passthrough,
                    "rack": f"rack{(n - 1) % plan.racks + 1}",
                }
            )
            for n in range(1, plan.hosts + 1)
        ]
        self._save()
        return make_key(self.state / "id_ed25519", "lab")

    def _start(self, host: Host, emulator: Emulator, image: HostImage, plan: Plan) -> None:
        for _ in range(START_TRIES):
            host.process = host.start(emulator, image, plan.cpus, plan.memory_mib)
            if host.process is not None:
                break
            host.move_to_free_port()  # somebody else took it in between
        else:
            raise LabError(f"{host.name}: no port on 127.0.0.1 could be kept in {START_TRIES} tries")
        self._save()
        self._progress.say(f"{host.name}: booting, ssh port {host.access.port}")

    def _wait(self, host: Host, limit_s: float) -> None:
        host.wait_for_ssh(limit_s, self._progress)
        self._progress.say(f"{host.name}: ssh works; waiting for its {host.vm_count} VMs")
        if not host.vm_count:
            return
        for vm in look_at_host(host, with_disk=False, wait_s=limit_s):
            if not vm["counting"]:
                log = host.access.run(
                    f"journalctl -n 20 --no-pager -u vmm-lab-vm@{vm['vm']}; tail -5 /var/log/vmm-lab/*"
                )
                raise LabError(f"{host.name}: VM {vm['vm']} does not count: {vm['problems']}\n{log.stdout}")
        self._progress.say(f"{host.name}: its VMs count and write")

    def _each(self, work: Callable[[Host], None]) -> None:
        """Do ``work`` for all hosts at once; the first failure comes through, after the others have ended too."""
        with ThreadPoolExecutor(max_workers=max(1, len(self.hosts))) as pool:
            futures = [pool.submit(work, host) for host in self.hosts]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for host in self.hosts:  # makes the waits of the others end
                    host.stop()
                raise

    # ---- down --------------------------------------------------------------------------------------------------

    def down(self) -> bool:
        """End everything this lab started and remove its files. False when there was nothing."""
        if not self.state.is_dir():
            return False
        with self._locked():
            try:
                self.load()
            except LabError:
                pass  # killed before it had hosts: the folder is all there is
            self._remove()
        return True

    def _remove(self) -> None:
        for host in self.hosts:
            self._progress.say(f"{host.name}: ending")
            host.stop()
        if self._control is not None:
            shutil.rmtree(self._control, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def _refuse_or_clear_old(self) -> None:
        if not self.state.exists():
            return
        if not (self.state / "state.json").exists():
            raise LabError(f"{self.state} exists and is no lab: remove it, or name another --state")
        self.load()
        alive = [host.name for host in self.hosts if host.alive()]
        if alive:
            raise LabError(f"a lab is up already in {self.state} ({', '.join(alive)}): end it with `lab.py down`")
        self._progress.say("the last lab here has died; removing what it left")
        self._remove()
        self.hosts, self._control = [], None

    # ---- state -------------------------------------------------------------------------------------------------

    def _host_from(self, entry: dict[str, Any]) -> Host:
        assert self._control is not None
        name = entry["name"]
        access = SshAccess(
            entry.get("port") or free_port(),
            self.state / "id_ed25519",
            self.state / "known_hosts",
            self._control / name,
        )
        process = ProcessId(*entry["process"]) if entry.get("process") else None
        return Host(
            name,
            self.state / name,
            entry["vms"],
            entry["rack"],
            self._pace,
            access,
            process,
            entry.get("passthrough", 0),
        )

    def _save(self) -> None:
        data = {
            "control": str(self._control),
            "pace": vars(self._pace),
            "hosts": [host.to_dict() for host in self.hosts],
        }
        new = self.state / "state.json.new"
        new.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(new, self.state / "state.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time. The lock lies outside of the state, which comes and goes."""
        locks = default_root() / "lab" / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / f"state-{content_key({'state': str(self.state)})}", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"another lab.py is at work in {self.state}: wait for it") from None
            yield
