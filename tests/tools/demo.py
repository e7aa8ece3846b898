#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: two QEMU builds, a fleet of emulated hosts with VMs, a rollout over it, one host rolled back.

All that is shown runs from the collection as installed from its tarball. Exit status 0 means that every VM was moved
and that every guest proved that it was never reset.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jsonschema
from builds import Build, build
from checkout import BUILD, LAB, NEW_SERIES, OLD_SERIES, ROOT, environment
from collection import build as build_tarball
from collection import install
from narrator import CommandFailedError, Narrator

WORK = BUILD / "demo"
RESULTS = BUILD / "results"
UPGRADE_REPORT = RESULTS / "upgrade.json"
ROLLBACK_REPORT = RESULTS / "rollback.json"
ROLLED_BACK = "h3"

ANSIBLE_CFG = """\
[defaults]
collections_path = {collections}
inventory = {inventory}
callbacks_enabled = vmm.live_upgrade.progress
retry_files_enabled = false
interpreter_python = auto_silent

[ssh_connection]
pipelining = true
"""


class DemoFailedError(Exception):
    """What the demonstration wanted to show did not happen."""


class Demo:
    """One run. ``hosts`` hosts with ``vms`` VMs each."""

    def __init__(self, hosts: int, vms: int) -> None:
        self._hosts = hosts
        self._vms = vms
        self._collections = WORK / "collections"
        self._inventory = BUILD / "lab" / "demo" / "inventory.yml"
        configuration = WORK / "ansible.cfg"
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        RESULTS.mkdir(exist_ok=True)
        configuration.write_text(ANSIBLE_CFG.format(collections=self._collections, inventory=self._inventory))
        values = environment(
            ANSIBLE_CONFIG=str(configuration),
            ANSIBLE_COLLECTIONS_PATH=str(self._collections),
        )
        self._narrator = Narrator(values, WORK)
        self.say = self._narrator.say

    def run(self) -> None:
        """Everything from the sources to the last proof. Raises when anything is not as it should be."""
        self._narrator.chapter("The collection: built, and installed from its tarball")
        collection = install(build_tarball(), self._collections)
        self.say(f"installed in {collection}")
        self._narrator.chapter(f"Two QEMUs, {OLD_SERIES} and {NEW_SERIES}, from source (found again when built before)")
        old, new = build(OLD_SERIES, self._narrator), build(NEW_SERIES, self._narrator)
        self.say(f"old build {old.build_id}")
        self.say(f"new build {new.build_id}")
        self._bring_up(old, new)
        self._narrator.chapter("The guests before")
        before = self._look("before")
        self._upgrade(new)
        self._narrator.chapter("The guests after the rollout, against before")
        after = self._look("after", against="before")
        upgraded = self._report(UPGRADE_REPORT, collection)
        self._show_moves(upgraded, before, after)
        self._narrator.chapter(f"{ROLLED_BACK} goes back to its build before")
        self._playbook(
            "rollback", rollback_hosts=ROLLED_BACK, rollback_from=UPGRADE_REPORT, rollback_report=ROLLBACK_REPORT
        )
        last = self._look("last", against="after")
        rolled_back = self._report(ROLLBACK_REPORT, collection)
        self._show_moves(rolled_back, after, last)
        self._show_proof([upgraded, rolled_back], before, last)
        self._require(upgraded, old, new, self._hosts * self._vms)
        self._require(rolled_back, new, old, self._vms)

    def tear_down(self) -> None:
        """End the lab, whatever state it is in."""
        self._narrator.chapter("Cleaning up")
        self._lab("down", doing="ending the lab")

    def _bring_up(self, old: Build, new: Build) -> None:
        lab = f"A lab of {self._hosts} hosts with {self._vms} VMs each, running on the old build"
        self._narrator.chapter(f"{lab}; the last of each has an NVMe drive of the host passed through")
        self._lab("down", doing="ending what an earlier run left")
        self._lab(
            *("up", "--hosts", str(self._hosts), "--vms", str(self._vms), "--passthrough", "1"),
            *("--qemu-host", str(new.artifact), "--artifact", str(old.artifact)),
            doing="bringing up the lab",
        )

    def _upgrade(self, new: Build) -> None:
        self._narrator.chapter("The new build goes beside the old one on every host")
        self._playbook("stage", stage_artifact=new.artifact)
        self._narrator.chapter("Preflight: a verdict for every VM; nothing is touched")
        self._playbook("preflight", preflight_build=new.build_id)
        self._narrator.chapter("The rollout: h1 is the canary, then the others")
        self._playbook("upgrade", upgrade_build=new.build_id, upgrade_waves=[1, "100%"], upgrade_report=UPGRADE_REPORT)

    def _playbook(self, name: str, **variables: object) -> None:
        self._narrator.run(
            *("ansible-playbook", f"vmm.live_upgrade.{name}", "-e", json.dumps(variables, default=str)),
            doing=f"playbook {name}",
        )

    def _lab(self, *arguments: str, doing: str, result_to: Path | None = None) -> None:
        self._narrator.run(sys.executable, LAB, "--name", "demo", *arguments, doing=doing, result_to=result_to)

    def _look(self, name: str, against: str = "") -> dict[str, dict[str, Any]]:
        """Have the lab prove its guests, and return what it saw by the name of the VM."""
        saved = WORK / f"guests-{name}.json"
        more = ("--against", str(WORK / f"guests-{against}.json")) if against else ()
        self._lab("verify", "--save", str(saved), *more, doing="verifying the guests", result_to=WORK / "verify.out")
        return {vm["vm"]: vm for vm in json.loads(saved.read_text())["vms"]}

    def _report(self, path: Path, collection: Path) -> list[dict[str, Any]]:
        """Return the VMs of a report that is valid by the collection's schema."""
        report = json.loads(path.read_text())
        jsonschema.validate(report, json.loads((collection / "docs" / "upgrade.schema.json").read_text()))
        self.say(f"{path.relative_to(ROOT)} is valid by docs/upgrade.schema.json; verdict: {report['verdict']}")
        vms: list[dict[str, Any]] = report["vms"]
        return vms

    def _show_moves(self, vms: list[dict[str, Any]], before: dict[str, Any], after: dict[str, Any]) -> None:
        self.say()
        for vm in vms:
            downtime = (
                "not measured" if vm["downtime_ms"] is None else f"{vm['downtime_ms']:.1f} ms ({vm['downtime_source']})"
            )
            path = f"{vm['old_build_id']} -> {vm['new_build_id']} by {vm['mechanism']}"
            self.say(f"{vm['host']}/{vm['name']}: {path}, downtime {downtime}")
            first, second = before[vm["name"]]["page"], after[vm["name"]]["page"]
            self.say(
                f"    counter {first['counter']} -> {second['counter']}, uptime {first['uptime_ms'] / 1000:.0f} s -> "
                f"{second['uptime_ms'] / 1000:.0f} s, same boot: {first['nonce'] == second['nonce']}, "
                f"{second['records']} disk records verified, {second['disk_errors'] + second['disk_mismatches']} bad"
            )
        self.say(f"downtime over all: {_spread([vm['downtime_ms'] for vm in vms])}")

    def _show_proof(self, reports: list[list[dict[str, Any]]], before: dict[str, Any], last: dict[str, Any]) -> None:
        self._narrator.chapter("Every VM, over the whole demonstration")
        for name, vm in sorted(last.items()):
            moves = [move for report in reports for move in report if move["name"] == name]
            path = " -> ".join([moves[0]["old_build_id"], *(move["new_build_id"] for move in moves)])
            self.say(f"{vm['host']}/{name}: {path}")
            first, final = before[name]["page"], vm["page"]
            self.say(
                f"    downtime {_spread([move['downtime_ms'] for move in moves])}; "
                f"counter {first['counter']} -> {final['counter']}, never reset; {final['records']} disk records verify"
            )

    @staticmethod
    def _require(vms: list[dict[str, Any]], old: Build, new: Build, count: int) -> None:
        moved = [
            vm
            for vm in vms
            if (vm["outcome"], vm["mechanism"]) == ("upgraded", "vfork")
            and (vm["old_build_id"], vm["new_build_id"]) == (old.build_id, new.build_id)
        ]
        if len(moved) != count or len(vms) != count:
            raise DemoFailedError(f"{len(moved)} of {count} VMs moved by vfork from {old.build_id} to {new.build_id}")
        if unmeasured := [vm["name"] for vm in vms if vm["downtime_ms"] is None]:
            raise DemoFailedError(f"no downtime was measured of {', '.join(unmeasured)}")


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n=0, not measured"
    return f"n={len(known)}, median {statistics.median(known):.1f} ms, max {max(known):.1f} ms"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    # SIGINT too: whoever starts this in the background has it ignored, and children would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    demo = Demo(int(os.environ.get("HOSTS", "3")), int(os.environ.get("VMS", "2")))
    code = 1
    try:
        demo.run()
        code = 0
    except (CommandFailedError, DemoFailedError, jsonschema.ValidationError) as error:
        demo.say(f"the demonstration failed: {error}")
    except KeyboardInterrupt:
        demo.say("interrupted")
        code = 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            demo.tear_down()
        except CommandFailedError as error:
            demo.say(str(error))
            code = code or 1
    demo.say("the demonstration succeeded" if code == 0 else f"exit status {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
