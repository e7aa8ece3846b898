# SPDX-License-Identifier: GPL-3.0-or-later
"""The rulebook by ansible-rulebook, as it is: alerts come in, hosts go back. The hosts are scripted, all else is real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.rollout.conftest import NEW, OLD, REPOSITORY, Fleet

TOOLS = REPOSITORY / ".venv-eda" / "bin"
TOKEN = "a-long-random-word"
_LIMIT_S = 240


class Rulebook:
    """A running ansible-rulebook that listens for alerts."""

    def __init__(self, fleet: Fleet, variables: dict[str, Any]) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        place = fleet.root / "eda"
        place.mkdir()
        (place / "vars.yml").write_text(json.dumps({"eda_port": self.port, **variables}), encoding="utf-8")
        (place / "inventory.json").write_text(json.dumps({"hypervisors": {"hosts": fleet.inventory}}), encoding="utf-8")
        self.log = place / "log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHONPATH"))},
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(fleet.root / "collections"),
            "ANSIBLE_HOME": str(fleet.root / "ansible"),
            "XDG_STATE_HOME": str(fleet.state),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(TOOLS / "ansible-rulebook", "--rulebook", "vmm.live_upgrade.rollback_on_alert"),
                    *("--inventory", "inventory.json", "--vars", "vars.yml"),
                ],
                cwd=place,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def post(self, alert: dict[str, Any], token: str = TOKEN) -> int:
        """Send what Alertmanager sends, and return the status of the answer."""
        request = urllib.request.Request(  # to ourselves
            f"http://127.0.0.1:{self.port}/alerts",
            data=json.dumps(alert).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    def await_that(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds``, while the rulebook runs."""
        deadline = time.monotonic() + _LIMIT_S
        while not holds():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.2)

    def listens(self) -> bool:
        """Whether somebody answers."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def rulebook(fleet: Fleet) -> Iterator[Callable[..., Rulebook]]:
    """``rulebook(eda_token=..., ...)`` starts one; it ends with the test."""
    started: list[Rulebook] = []

    def start(**variables: Any) -> Rulebook:
        started.append(Rulebook(fleet, variables))
        return started[-1]

    yield start
    for one in started:
        one.close()


def alert(rollout_id: str, status: str = "firing") -> dict[str, Any]:
    """Return a message as Alertmanager sends it to a webhook."""
    labels = {"alertname": "GuestsWorseAfterUpgrade", "rollout_id": rollout_id}
    return {
        "version": "4",
        "status": status,
        "receiver": "rollback",
        "groupLabels": {"rollout_id": rollout_id},
        "commonLabels": labels,
        "commonAnnotations": {},
        "alerts": [{"status": status, "labels": labels, "annotations": {}}],
    }


def test_the_rollout_that_an_alert_names_goes_back(fleet: Fleet, rulebook: Callable[..., Rulebook]) -> None:
    """And none for a stranger, for what is resolved, or for a name that is no id. What comes first is handled first."""
    for name in ("h1", "h2", "h3"):
        fleet.add_host(name)
    assert fleet.upgrade(upgrade_hosts="h3").exit_status == 0
    assert fleet.upgrade(upgrade_hosts="h1:h2", upgrade_waves=[1], upgrade_until_wave=0).exit_status == 0
    rollout_id = fleet.status()["rollout_id"]
    results = fleet.root / "build" / "results"
    book = rulebook(eda_token=TOKEN, eda_results=str(results))
    book.await_that(book.listens)
    calls = {name: len(fleet.host(name)["calls"]) for name in ("h1", "h3")}

    assert book.post(alert(rollout_id), token="another-word") == 401
    assert book.post(alert(rollout_id, status="resolved")) == 200
    assert book.post(alert(f"../rollouts/{rollout_id}")) == 200
    assert book.post(alert("upgrade-20260101T000000Z-zzzzzz")) == 200
    unlabelled = alert(rollout_id)
    del unlabelled["commonLabels"]["rollout_id"]
    assert book.post(unlabelled) == 200
    assert book.post(alert(rollout_id)) == 200
    assert book.post(alert(rollout_id)) == 200
    book.await_that(lambda: _status(results) == "done")

    assert (fleet.builds("h1"), fleet.builds("h2"), fleet.builds("h3")) == ({"vm1": OLD}, {"vm1": OLD}, {"vm1": NEW})
    assert len(fleet.host("h1")["calls"]) > calls["h1"]
    journals = sorted(path.name for path in (results / "rollouts").glob("rollback-*.jsonl"))
    assert len(journals) == 1, "one alert of all that came, and once"
    refused = fleet.run("upgrade", upgrade_resume=rollout_id)
    assert refused.exit_status == 2 and "were taken back by" in refused.output


def test_without_a_token_nobody_is_let_in(fleet: Fleet, rulebook: Callable[..., Rulebook]) -> None:
    """ansible-rulebook starts all the same, and takes what is not defined for a token that nobody can show."""
    fleet.add_host("h1")
    book = rulebook(eda_results=str(fleet.root / "build" / "results"))
    book.await_that(book.listens)
    for token in (TOKEN, "", "None", "{{eda_token}}", "{{ eda_token }}"):
        assert book.post(alert("upgrade-20261126T232846Z-ffa362"), token=token) in (401, 500), token


def test_ansible_runner_goes_wave_by_wave(fleet: Fleet, tmp_path: Path) -> None:
    """The example that asks for the approval on the terminal."""
    for name in ("h1", "h2", "h3"):
        fleet.add_host(name)
    directory = tmp_path / "runner"
    (directory / "inventory").mkdir(parents=True)
    (directory / "inventory" / "hosts.json").write_text(json.dumps({"hypervisors": {"hosts": fleet.inventory}}))
    (directory / "project").mkdir()
    (directory / "env").mkdir()
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(fleet.root / "collections"), "XDG_STATE_HOME": str(fleet.state)}
    (directory / "env" / "envvars").write_text(json.dumps(settings))
    waves = [TOOLS / "python", REPOSITORY / "docs" / "examples" / "ci" / "runner" / "waves.py", directory, NEW]
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)

    def run(answer: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            waves, input=f"{answer}\n", env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )

    declined = run("no")
    assert declined.returncode == 2, declined.stdout + declined.stderr
    assert fleet.builds("h1") == {"vm1": OLD}
    plan = json.loads((directory / "results" / "plan.json").read_text())

    done = run(plan["hash"])

    assert done.returncode == 0, done.stdout + done.stderr
    assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [NEW] * 3
    journal = next((directory / "results" / "rollouts").glob("upgrade-*.jsonl")).read_text().splitlines()
    runs = [json.loads(line)["event"] for line in journal if json.loads(line)["event"] in ("begin", "resume")]
    assert runs == ["begin", "resume", "resume"], "each wave was a run of its own"


def _status(results: Path) -> str | None:
    path = results / "rollback.status.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["status"]) if path.is_file() else None
