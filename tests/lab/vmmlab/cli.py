# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments of ``lab.py`` and what each command does."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from .artifact import default_artifact
from .cache import Cache, default_root
from .fleet import Fleet, Plan
from .progress import LabError, Progress
from .verify import look_at_host, table, verify

CHECKOUT = Path(__file__).resolve().parents[3]
OUTER_SERIES = "11.1"
VM_SERIES = "10.2"


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    fleet = Fleet(arguments.state or CHECKOUT / "build" / "lab" / arguments.name, Progress())
    try:
        code: int = arguments.command(fleet, arguments)
        return code
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _up(fleet: Fleet, arguments: argparse.Namespace) -> int:
    cache = Cache(default_root() / "lab")
    plan = Plan(
        hosts=arguments.hosts,
        vms=arguments.vms,
        passthrough=arguments.passthrough,
        racks=arguments.racks,
        cpus=arguments.cpus,
        memory_mib=arguments.memory,
        outer_qemu=arguments.qemu_host or default_artifact(OUTER_SERIES),
        artifacts=arguments.artifact or [default_artifact(VM_SERIES)],
        accelerator=arguments.accel,
        tick_us=arguments.tick,
        limit_s=arguments.limit,
    )
    fleet.up(plan, cache)
    print(fleet.inventory)
    return 0


def _down(fleet: Fleet, arguments: argparse.Namespace) -> int:
    print("down" if fleet.down() else f"nothing is up in {fleet.state}")
    return 0


def _status(fleet: Fleet, arguments: argparse.Namespace) -> int:
    """0 when every host answers and every VM counts."""
    fleet.load()
    vms = []
    healthy = True
    for host in fleet.hosts:
        try:
            if not host.alive():
                raise LabError(f"{host.name}: its emulator has ended")
            seen = look_at_host(host, with_disk=False)
        except LabError as error:
            healthy = False
            print(error)
            continue
        print(f"{host.name}: up, ssh port {host.access.port}, {host.rack}, {host.resident_mib()} MiB resident")
        vms += seen
    print(table(vms))
    return 0 if healthy and all(vm["counting"] for vm in vms) else 1


def _ssh(fleet: Fleet, arguments: argparse.Namespace) -> int:
    command = fleet.load().host(arguments.host).access.command(*arguments.remote)
    os.execvp(command[0], command)


def _inventory(fleet: Fleet, arguments: argparse.Namespace) -> int:
    print(fleet.load().inventory)
    return 0


def _verify(fleet: Fleet, arguments: argparse.Namespace) -> int:
    result = verify(fleet.load().hosts, arguments.against)
    print(table(result["vms"]), file=sys.stderr)
    print(json.dumps(result, indent=1))
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.py", description="Fleet hosts made of emulated machines.")
    parser.add_argument("--name", default="default", help="name of the lab; its files are in build/lab/NAME")
    parser.add_argument("--state", type=Path, help="folder for its files instead")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring hosts and VMs up")
    up.add_argument("--hosts", type=_positive, default=1)
    up.add_argument("--vms", type=int, default=2, help="VMs per host")
    up.add_argument(
        "--passthrough", type=int, default=0, metavar="VMS", help="so many of them get a drive of the host by VFIO"
    )
    up.add_argument("--racks", type=_positive, default=3, help="failure domains the hosts are spread over")
    up.add_argument("--cpus", type=_positive, default=1, help="per host")
    up.add_argument("--memory", type=_positive, default=1280, metavar="MIB", help="per host")
    up.add_argument("--qemu-host", type=Path, help="build folder or artifact of the QEMU that emulates the hosts")
    up.add_argument("--artifact", type=Path, action="append", help="build on the hosts; VMs start on the first")
    up.add_argument("--accel", choices=("auto", "tcg", "kvm"), default="auto", help="auto: ask by booting a host once")
    up.add_argument("--tick", type=int, default=0, metavar="US", help="period of the guests' counters in microseconds")
    up.add_argument(
        "--limit", type=float, default=600.0, metavar="SECONDS", help="for a host, and for its VMs, to come"
    )
    up.set_defaults(command=_up)

    commands.add_parser("down", help="end everything, leave nothing").set_defaults(command=_down)
    commands.add_parser("status", help="hosts and VMs").set_defaults(command=_status)
    commands.add_parser("inventory", help="path of the Ansible inventory").set_defaults(command=_inventory)

    ssh = commands.add_parser("ssh", help="a shell, or a command, on a host")
    ssh.add_argument("host")
    ssh.add_argument("remote", nargs=argparse.REMAINDER)
    ssh.set_defaults(command=_ssh)

    check = commands.add_parser("verify", help="prove that guests count and their disks hold what they wrote")
    check.add_argument("--save", type=Path, metavar="FILE", help="write what was seen, for a later --against")
    check.add_argument("--against", type=Path, metavar="FILE", help="and that they are the same boots, further on")
    check.set_defaults(command=_verify)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
