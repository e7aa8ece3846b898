# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of a rollout by the size of the fleet: what is judged of it, and that what is measured is a rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.tests.bench.fleet_scale import merged, shortfalls, sizes_of
from ansible_collections.vmm.live_upgrade.tests.bench.simulated_hosts import NEW, OLD, Host, call


def row(hosts: int, cpu_s: float) -> dict[str, Any]:
    return {"hosts": hosts, "vms": hosts * 5, "controller_cpu_s_per_host": cpu_s}


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        (0.5, 0.5, []),
        (2.9, 3.1, ["1000 hosts: 3.1 CPU-s a host"]),
        (0.5, 0.6, ["1.20 times as much among 1000 as among 200"]),
        (0.6, 0.5, []),
    ],
    ids=["linear", "too-much", "grows", "shrinks"],
)
def test_what_is_aimed_at(small: float, large: float, words: list[str]) -> None:
    found = shortfalls([row(200, small), row(1000, large)])
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_sizes_that_were_not_run_stay_in_the_results(tmp_path: Path) -> None:
    results = tmp_path / "fleet.json"
    assert merged([row(200, 1.0)], results) == [row(200, 1.0)]
    results.write_text(json.dumps({"scale": [row(200, 1.0), row(1000, 1.0)]}))
    assert merged([row(200, 2.0)], results) == [row(200, 2.0), row(1000, 1.0)]


@pytest.mark.parametrize("size", ["200", "0x5", "200x0", "ax5", "200x5x1"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(SystemExit, match="is no size; give hosts and the VMs on each, such as 200x5"):
        sizes_of([size])


def program(module: str, **arguments: Any) -> bytes:
    """The lines of a program, as Ansible makes it, that tell what it is."""
    name = f"ansible_collections.vmm.live_upgrade.plugins.modules.{module}"
    params = json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_check_mode": False, **arguments}})
    return f"module_fqn={name!r},\nparams={params!r},\nzip_data='...',\n".encode()


def test_a_simulated_host_is_upgraded_by_two_calls() -> None:
    host = Host("h1", {"h1-vm0": OLD, "h1-vm1": OLD})
    told = [json.loads(call(host, program("vm_upgrade", build_id=NEW))[1]) for _call in range(2)]
    assert [answer["finished"] for answer in told] == [False, True]
    assert {vm["outcome"] for vm in told[1]["vms"]} == {"upgraded"}
    assert set(host.builds.values()) == {NEW}
    assert told[1]["invocation"]["module_args"] == {"build_id": NEW}


def test_what_a_simulated_host_does_not_know_fails() -> None:
    assert call(Host("h1", {}), program("vm_info"))[0] == 127
    assert call(Host("h1", {}), b"echo ~")[0] == 127
