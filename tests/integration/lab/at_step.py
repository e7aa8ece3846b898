# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits on a host until a transaction that is yet to begin comes to a step of a VM, and does something at that moment.

Fed to ``python3 -`` over ssh; standard library only. Its argument is a JSON object: ``vm``, ``step``, and ``then``, the
name of an action below. It says ``watching`` when it looks, and ends with what the action says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

STATE = Path("/var/lib/vmm-live-upgrade")
TRANSACTIONS = STATE / "transactions"
LIMIT_S = 300.0
POLL_S = 0.02


def names() -> set[str]:
    return set(os.listdir(TRANSACTIONS)) if TRANSACTIONS.is_dir() else set()


def steps(transaction: str, vm: str) -> list[str]:
    try:
        lines = (TRANSACTIONS / transaction / "journal.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record["step"] for record in records if record.get("vm") == vm]


def tell(transaction: str) -> str:
    return transaction


def freeze_engine(transaction: str) -> str:
    """Stop the engine, not its workers. Says its number."""
    pid = int(json.loads((STATE / "lock").read_text())["pid"])
    os.kill(pid, signal.SIGSTOP)
    return str(pid)


def reset(transaction: str) -> str:
    """As if somebody pressed the button: nothing is flushed, nothing is ended."""
    Path("/proc/sysrq-trigger").write_text("b")
    return ""


def fill(transaction: str) -> str:
    """Take all space of the file system that transactions are on."""
    with open(TRANSACTIONS / "ballast", "wb", buffering=0) as stream:
        for size in (65536, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return str((TRANSACTIONS / "ballast").stat().st_size)


ACTIONS = {action.__name__: action for action in (tell, freeze_engine, reset, fill)}


def main() -> int:
    request = json.loads(sys.argv[1])
    known = names()
    print("watching", flush=True)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for transaction in names() - known:
            ended = (TRANSACTIONS / transaction / "result.json").exists()  # asked first: it is written last
            if request["step"] in steps(transaction, request["vm"]):
                print(ACTIONS[request["then"]](transaction), flush=True)
                return 0
            if ended:
                print(f"{transaction} ended without it: {steps(transaction, request['vm'])}", file=sys.stderr)
                return 1
        time.sleep(POLL_S)  # a journal that grows sends no event that Python knows of
    print(f"{request['vm']} did not come to {request['step']} within {LIMIT_S:.0f} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
