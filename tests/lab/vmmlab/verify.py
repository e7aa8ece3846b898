# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof about the guests: they count, remember their boot, and every record they wrote is on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hosttools.verify import check_disk

from .host import Host
from .progress import LabError
from .vmspec import VmSpec

TOOL = Path(__file__).resolve().parent.parent / "hosttools" / "verify.py"
COLUMNS = ("vm", "build_id", "counter", "uptime_s", "records", "errors", "max_gap_ms", "complaints", "clock_jumps")


def look_at_host(host: Host, with_disk: bool, wait_s: float = 0.0) -> list[dict[str, Any]]:
    """What the host sees of its VMs, by one command over ssh. Raises LabError when the host does not answer."""
    request = json.dumps({"vms": [vm.name for vm in host.vms], "disk": with_disk, "wait_s": wait_s})
    quoted = "'" + request + "'"  # JSON of names and numbers: no quote inside
    done = host.access.run("python3", "-", quoted, stdin=TOOL.read_text(), timeout_s=wait_s + 300)
    if done.returncode != 0:
        raise LabError(f"{host.name}: its VMs could not be looked at: {done.stderr.strip()}\n{host.console_tail(8)}")
    found = [{"host": host.name, **vm} for vm in json.loads(done.stdout)]
    if with_disk:
        for spec, vm in zip(host.vms, found):
            if spec.passthrough and "page" in vm:
                _look_at_drive(host, spec, vm)
    return found


def _look_at_drive(host: Host, spec: VmSpec, vm: dict[str, Any]) -> None:
    """Add what is wrong on a drive that is passed through: its host cannot read it."""

    def status_page() -> dict[str, int]:
        page: dict[str, int] = next(vm["page"] for vm in look_at_host(host, with_disk=False) if vm["vm"] == spec.name)
        return page

    problems, checked = check_disk(str(host.drive(spec)), status_page)
    vm.update(problems=[*vm["problems"], *problems], records_checked=checked)


def judge(vm: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Everything that is wrong with a VM, also against what it was ``before`` (an entry of an earlier look)."""
    failures = list(vm["problems"])
    page = vm.get("page")
    if page is None:
        return failures or ["its status page cannot be read"]
    if not vm["counting"]:
        failures.append("its counter stands still")
    if page["records"] == 0:
        failures.append("it has written no disk record")
    failures += [f"{name}: {page[name]}" for name in ("disk_errors", "disk_mismatches") if page[name]]
    if before is not None:
        failures += _differences(page, before.get("page"))
    return failures


def _differences(page: dict[str, int], before: dict[str, int] | None) -> list[str]:
    if before is None:
        return ["nothing is known of it from before"]
    if page["nonce"] != before["nonce"]:
        return [f"it was booted again: nonce {before['nonce']:016x} became {page['nonce']:016x}"]
    grown = ("counter", "uptime_ms", "records")
    return [f"{name} did not grow: {before[name]} became {page[name]}" for name in grown if page[name] <= before[name]]


def verify(hosts: list[Host], against: Path | None) -> dict[str, Any]:
    """Verdict over all VMs: ``{"ok": bool, "vms": [look + "failures"]}``; a VM of ``against`` that is gone fails."""
    before = {vm["vm"]: vm for vm in json.loads(against.read_text())["vms"]} if against else None
    vms = []
    for host in hosts:
        for vm in look_at_host(host, with_disk=True):
            earlier = None if before is None else before.get(vm["vm"], {})
            vms.append({**vm, "failures": judge(vm, earlier)})
    gone = set(before or {}) - {vm["vm"] for vm in vms}
    vms += [{"vm": name, "failures": ["it is not in the lab any more"]} for name in sorted(gone)]
    return {"ok": bool(vms) and not any(vm["failures"] for vm in vms), "vms": vms}


def table(vms: list[dict[str, Any]]) -> str:
    """One line per VM, for people."""
    rows = [list(COLUMNS), *(_row(vm) for vm in vms)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    failures = [f"{vm['vm']}: {failure}" for vm in vms for failure in vm.get("failures", [])]
    return "\n".join([*lines, *failures])


def _row(vm: dict[str, Any]) -> list[str]:
    page = vm.get("page")
    if page is None:
        return [vm["vm"], str(vm.get("build_id") or "-"), *["-"] * (len(COLUMNS) - 2)]
    errors = page["disk_errors"] + page["disk_mismatches"]
    numbers = (page["counter"], page["uptime_ms"] // 1000, page["records"], errors, page["max_gap_us"] // 1000)
    return [
        vm["vm"], vm["build_id"] or "-", *map(str, numbers), str(page["complaints"]), str(page["clock_jumps"])
    ]  # fmt: skip
