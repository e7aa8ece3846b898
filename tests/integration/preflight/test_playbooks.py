# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules, the role and the playbooks, run by the real ansible-playbook against this machine as a host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEW_BUILD, OLD_BUILD, World

ROOT = Path(__file__).resolve().parents[3]
PYTHON = sys.executable
INVENTORY = {
    "hypervisors": {
        "hosts": {
            "h1": {"ansible_connection": "local", "ansible_python_interpreter": PYTHON},
            "h2": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"},
        }
    }
}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout where Ansible looks for the collection."""
    tree = tmp_path_factory.mktemp("tree")
    (tree / "ansible_collections" / "vmm").mkdir(parents=True)
    (tree / "ansible_collections" / "vmm" / "live_upgrade").symlink_to(ROOT)
    return tree


def run(tree: Path, folder: Path, playbook: Path, *words: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook with the inventory above; ``words`` are further arguments."""
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(tree),
        "ANSIBLE_SSH_TIMEOUT": "2",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(Path(PYTHON).with_name("ansible-playbook")), "-i", str(inventory), str(playbook), *words]
    return subprocess.run(
        [*command, "-e", json.dumps(variables)], env=environment, capture_output=True, text=True, check=False
    )


def shown(done: subprocess.CompletedProcess[str]) -> set[tuple[str, ...]]:
    """The rows of the tables in the output, as words; Ansible shows lists with dashes and some quotes."""
    return {tuple(line.strip().removeprefix("- ").strip("'\"").split()) for line in done.stdout.splitlines()}


def test_preflight_playbook(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("web1")
    world.vm("db1", aux_ram_share=False)
    variables = {
        "preflight_build": NEW_BUILD,
        "preflight_state_dir": str(world.state_dir),
        "preflight_vms": ["web1", "db1"],
        "preflight_hosts": "h1",
    }

    done = run(tree, tmp_path, ROOT / "playbooks" / "preflight.yml", **variables)

    lines = shown(done)
    assert ("h1", "web1", OLD_BUILD, "go", "old-build-not-staged") in lines, done.stdout
    assert ("h1", "db1", OLD_BUILD, "refuse", "aux-ram-private") in lines
    assert "h1/db1 [aux-ram-private] memory that QEMU allocates by itself is private" in done.stdout
    assert "1 VMs refused, 0 hosts gave no verdict" in done.stdout
    assert done.returncode != 0

    done = run(
        tree, tmp_path, ROOT / "playbooks" / "preflight.yml", "--check", **{**variables, "preflight_vms": ["web1"]}
    )

    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout and "Every VM can be upgraded" in done.stdout


def test_preflight_playbook_asks_for_a_kvm_build(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("web1")
    variables = {
        "preflight_build": NEW_BUILD,
        "preflight_kvm_build": "kvm-6.12.118-00000000000000bb",
        "preflight_state_dir": str(world.state_dir),
        "preflight_vms": ["web1"],
        "preflight_hosts": "h1",
    }

    done = run(tree, tmp_path, ROOT / "playbooks" / "preflight.yml", **variables)

    assert "h1/web1 [kvm-not-used] the VM runs on tcg, not on KVM" in " ".join(done.stdout.split()), done.stdout
    assert done.returncode != 0


def test_preflight_playbook_rehearses_when_asked_and_not_in_check_mode(
    world: World, tree: Path, tmp_path: Path
) -> None:
    vm, other = world.vm("web1"), world.vm("db1", extra=["-sandbox", "on,spawn=deny"])
    variables = {
        "preflight_build": NEW_BUILD,
        "preflight_state_dir": str(world.state_dir),
        "preflight_vms": ["web1", "db1"],
        "preflight_hosts": "h1",
        "preflight_rehearse": True,
        "preflight_downtime_budget_ms": 20000,
    }

    done = run(tree, tmp_path, ROOT / "playbooks" / "preflight.yml", "--check", **variables)

    words = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout
    assert "h1/web1 [not-rehearsed] no rehearsal was done: it would pause the guest, which check mode must not" in words
    assert {row[-1] for row in shown(done) if row[:2] in (("h1", "web1"), ("h1", "db1"))} == {"not_done"}
    assert vm.execute("query-cpr-vfork")["phase"] == "idle"

    done = run(tree, tmp_path, ROOT / "playbooks" / "preflight.yml", **variables)

    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert re.search(r"h1 web1 \S+ go \S+ passed, [0-9.]+ ms", " ".join(done.stdout.split())), done.stdout
    assert "h1/db1 [not-rehearsed] no rehearsal was done: the VM would be moved by cpr-transfer" in " ".join(
        done.stdout.split()
    )
    vm.wait_counting()
    assert vm.execute("query-cpr-vfork")["phase"] == "aborted"
    assert other.execute("query-cpr-vfork")["phase"] == "idle"


def test_preflight_playbook_knows_the_budgets_of_classes(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("web1")
    variables = {
        "preflight_build": NEW_BUILD,
        "preflight_state_dir": str(world.state_dir),
        "preflight_vms": ["web1"],
        "preflight_hosts": "h1",
        "vm_classes": {"web1": "realtime"},
    }

    done = run(
        tree, tmp_path, ROOT / "playbooks" / "preflight.yml", **variables, preflight_pause_budgets_ms={"batch": 9}
    )

    assert "no budget for class 'realtime' (of VM web1), only for batch" in " ".join(done.stdout.split())
    assert done.returncode != 0


def test_preflight_playbook_shows_hosts_without_a_verdict(world: World, tree: Path, tmp_path: Path) -> None:
    unstaged = "qemu-11.1.1-ffffffffffffffff"
    state_dir = str(world.state_dir)

    done = run(
        tree, tmp_path, ROOT / "playbooks" / "preflight.yml", preflight_build=unstaged, preflight_state_dir=state_dir
    )

    rows = [line for line in shown(done) if line[3:4] == ("unknown",)]
    assert sorted(row[0] for row in rows) == ["h1", "h2"], done.stdout
    assert f"build {unstaged} is not staged" in " ".join(done.stdout.split())
    assert "0 VMs refused, 2 hosts gave no verdict" in done.stdout
    assert done.returncode != 0


def test_status_playbook(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("web1")
    variables = {"upgrade_state_dir": str(world.state_dir), "status_hosts": "h1"}

    done = run(tree, tmp_path, ROOT / "playbooks" / "status.yml", **variables)

    words = " ".join(done.stdout.split())
    assert re.search(rf"h1 web1 {OLD_BUILD} no [0-9]+ s running pc-q35-10.2 64 MiB yes", words), done.stdout
    assert re.search(rf"{OLD_BUILD} \d+ 1 0 \d+", words)
    assert (done.returncode, "changed=0" in done.stdout) == (0, True)

    written = tmp_path / "status.json"
    done = run(
        tree,
        tmp_path,
        ROOT / "playbooks" / "status.yml",
        **variables,
        status_build=NEW_BUILD,
        status_file=str(written),
    )

    status = json.loads(written.read_text())
    (vm,) = [vm for vm in status["vms"] if vm["name"] == "web1"]
    assert (vm["host"], vm["build"], vm["behind"]) == ("h1", OLD_BUILD, NEW_BUILD)
    assert 0 <= vm["age_s"] < 600
    assert status["summary"] in " ".join(done.stdout.split())
    assert "behind, the oldest process for" in status["summary"]
    assert status["no_answer"] == []

    done = run(tree, tmp_path, ROOT / "playbooks" / "status.yml")

    assert "No answer from: h2." in done.stdout
    assert done.returncode != 0


def test_role_fails_with_the_reason_and_what_to_do(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("db1").execute("stop")
    playbook = tmp_path / "role.yml"
    playbook.write_text(
        json.dumps([{"hosts": "h1", "gather_facts": False, "roles": [{"role": "vmm.live_upgrade.preflight"}]}])
    )
    variables = {"preflight_build": NEW_BUILD, "preflight_state_dir": str(world.state_dir), "preflight_vms": ["db1"]}

    done = run(tree, tmp_path, playbook, **variables)

    words = " ".join(done.stdout.split())
    assert (
        f"VM db1 on h1 stays on {OLD_BUILD}, untouched [vm-not-running]: the VM is not running (state paused)." in words
    )
    assert "What to do: resume the VM" in words
    assert done.returncode != 0

    done = run(tree, tmp_path, playbook, preflight_assert=False, **variables)

    assert done.returncode == 0, done.stdout


def test_module_fails_only_when_asked(world: World, tree: Path, tmp_path: Path) -> None:
    world.vm("db1", aux_ram_share=False)
    arguments = {"build_id": NEW_BUILD, "state_dir": str(world.state_dir), "vms": ["db1"], "fail_on_refusal": True}
    playbook = tmp_path / "module.yml"
    tasks = [{"vmm.live_upgrade.vm_preflight": arguments}]
    playbook.write_text(json.dumps([{"hosts": "h1", "gather_facts": False, "tasks": tasks}]))

    done = run(tree, tmp_path, playbook)

    assert done.returncode != 0
    assert "1 of 1 VMs were refused. db1: memory that QEMU allocates by itself is private" in " ".join(
        done.stdout.split()
    )
