# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd unit of an engine, against tools that behave as systemd's: a unit exists until it has ended for good."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade import transactions
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions

RUN = """#!/bin/bash
for word; do case $word in --unit=*) unit=$UNITS/${word#--unit=};; esac; done
echo "run ${unit##*/}" >> "$UNITS/calls"
[ ! -e "$unit" ] || { echo "Unit ${unit##*/} was already loaded or has a fragment file." >&2; exit 1; }
echo 4711 > "$unit"
"""
CONTROL = """#!/bin/bash
verb=$1 unit=$UNITS/${!#}
[ "$verb" = show ] || echo "$verb ${unit##*/}" >> "$UNITS/calls"
case $verb in
start)
    [ ! -e "$UNITS/gone" ] || rm -f "$unit"
    [ -e "$unit" ] || { echo "Unit ${unit##*/} not found." >&2; exit 5; }
    echo 4712 > "$unit" ;;
show) cat "$unit" 2>/dev/null || echo 0 ;;
esac
"""


class Systemd:
    """Its tools, and what they were called for."""

    def __init__(self, directory: Path) -> None:
        self.units = directory

    def calls(self) -> list[str]:
        return (self.units / "calls").read_text().splitlines()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    tools, units = tmp_path / "tools", tmp_path / "units"
    tools.mkdir()
    units.mkdir()
    for name, script in (("systemd-run", RUN), ("systemctl", CONTROL)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("UNITS", str(units))
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or isdir(path))
    return Systemd(units)


@pytest.fixture
def host(tmp_path: Path) -> Transactions:
    return Transactions(UpgradeRequest("qemu-11.1.1-0123456789abcdef", state_dir=str(tmp_path)))


@pytest.fixture
def transaction(tmp_path: Path) -> Path:
    path = tmp_path / "transactions" / "20261126T080000-0a1b2c"
    path.mkdir(parents=True)
    return path


UNIT = "vmm-live-upgrade-20261126T080000-0a1b2c.service"


def test_a_transaction_has_one_unit_that_is_started_again(
    systemd: Systemd, host: Transactions, transaction: Path
) -> None:
    assert host._start_engine(transaction) == 4711
    assert host._start_engine(transaction) == 4712

    assert systemd.calls() == [f"run {UNIT}", f"run {UNIT}", f"start {UNIT}"]


def test_an_engine_that_ends_while_it_is_looked_for_is_no_error(
    systemd: Systemd, host: Transactions, transaction: Path
) -> None:
    host._start_engine(transaction)
    (systemd.units / "gone").touch()
    with pytest.raises(LiveUpgradeError, match="cannot start the engine: Unit .* already loaded.*not found. Run again"):
        host._start_engine(transaction)

    (systemd.units / UNIT).touch()
    (transaction / "result.json").write_text("{}")

    assert host._start_engine(transaction) == 0


def test_tools_that_hang_are_an_error(
    host: Transactions, transaction: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_START_S", 0.2)
    Path(os.environ["PATH"].partition(":")[0], "systemd-run").write_text("#!/bin/bash\nexec sleep 600\n")

    with pytest.raises(LiveUpgradeError, match="systemd-run does not end within 0.2 s. Run again"):
        host._start_engine(transaction)
