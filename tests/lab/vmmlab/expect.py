# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests: the lab that they need, or what to do when it is not there."""

from __future__ import annotations

from pathlib import Path

from .fleet import Fleet
from .progress import LabError, Progress

LABS = Path(__file__).resolve().parents[3] / "build" / "lab"


def expect_lab(name: str, hosts: int, vms: int) -> Fleet:
    """The lab ``name``, up with that many hosts of ``vms`` VMs each. Raises LabError that tells how to bring it up."""
    command = f".venv/bin/python tests/lab/lab.py --name {name}"
    up = f"{command} up --hosts {hosts} --vms {vms}"
    try:
        fleet = Fleet(LABS / name, Progress()).load()
    except LabError as error:
        raise LabError(f"the lab {name} is needed: bring it up with `{up}` ({error})") from error
    if [(host.vm_count, host.alive()) for host in fleet.hosts] != [(vms, True)] * hosts:
        raise LabError(f"the lab {name} must have {hosts} running hosts of {vms} VMs: `{command} down`, then `{up}`")
    return fleet
