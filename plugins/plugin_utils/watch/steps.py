# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps of a rollout do about its watcher. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.monitors import spare_monitor
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import settings_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import NO_WATCHER, Watch, read_watch
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher_control import (
    WatcherControl,
    why_impossible,
)

AUTO, ALWAYS, NEVER = "auto", "always", "never"


def begin_watch(mode: str, journal: Path, owner_pid: int, has_ssh: bool) -> str:
    """Start the watcher of a rollout where it is wanted and can be; return why not, which is written down, or nothing.

    ``has_ssh``: whether any host is reached by ssh. Raises ``AnsibleError`` when it has to be and cannot.
    """
    control = WatcherControl(journal)
    reason = why_not(mode, has_ssh)
    if not reason:
        try:
            control.start(owner_pid)
        except LiveUpgradeError as exc:
            reason = str(exc)
    if reason and mode == ALWAYS:
        raise _needed(reason)
    if reason:
        control.log.append("unwatched", reason=reason)
    return reason


def require_watch(mode: str, has_ssh: bool) -> None:
    """Raise ``AnsibleError`` when a rollout has to be watched and it is clear before it begins that it cannot be."""
    reason = why_not(mode, has_ssh)
    if reason and mode == ALWAYS:
        raise _needed(reason)


def why_not(mode: str, has_ssh: bool) -> str:
    """Return why a rollout will not be watched, as far as that is known before, or nothing."""
    if mode == NEVER:
        return "upgrade_watch is never"
    return why_impossible() if has_ssh else "no host is reached by ssh"


def _needed(reason: str) -> AnsibleError:
    return AnsibleError(
        f"upgrade_watch is always, but {reason}; nothing was touched. Mend that, or let the rollout do without (auto)"
    )


def watch_host(journal: Path, host: str, connection: Any, health: Mapping[str, Any]) -> None:
    """Have ``host`` watched by the way that ``connection`` goes, and the VMs in ``health``, if a look at them was recorded."""
    control = WatcherControl(journal)
    if not control.is_there():
        return
    try:
        settings = settings_of(connection)
    except LiveUpgradeError as exc:
        control.log.append("unwatched", host=host, reason=str(exc))
        return
    control.watch(host, asdict(settings), {})
    watch_vms(journal, host, health)


def watch_vms(journal: Path, host: str, health: Mapping[str, Any]) -> None:
    """Have the VMs of a host that is watched watched, too, by what ``vm_health`` told of their monitors."""
    control = WatcherControl(journal)
    if not control.is_there():
        return
    spare = {vm["name"]: spare_monitor(vm.get("monitors") or []) for vm in health.get("vms") or []}
    control.watch(host, None, {name: path for name, (path, _reason) in spare.items() if path})
    for name, (path, reason) in spare.items():
        if not path:
            control.log.append("unwatched", host=host, vm=name, reason=reason)


def look_now(journal: Path, hosts: Sequence[str]) -> Watch | None:
    """Return what was seen up to now, after a last look at ``hosts``; None where watching was never thought of."""
    is_there = WatcherControl(journal).look(hosts)
    watch = read_watch(journal)
    if watch and watch.watched and not is_there:
        watch.reason = watch.reason or NO_WATCHER
    return watch


def leave(journal: Path, hosts: Sequence[str]) -> None:
    """Watch ``hosts`` no more."""
    WatcherControl(journal).leave(hosts)


def end_watch(journal: Path) -> Watch | None:
    """End the watcher and return all that was seen."""
    WatcherControl(journal).end()
    return read_watch(journal)
