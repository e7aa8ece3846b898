# SPDX-License-Identifier: GPL-3.0-or-later
"""The pipelines of docs/examples/ci do what they are said to: their commands, over scripted hosts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.vmm.live_upgrade.tests.integration.rollout.conftest import NEW, OLD, REPOSITORY, Fleet

from .pipelines import GitHub, GitLab, Runner, base_environment, fake_downloads

EXAMPLES = REPOSITORY / "docs" / "examples" / "ci"
HOSTS = ("h1", "h2", "h3", "h4", "h5")


@pytest.fixture
def runner(fleet: Fleet, tmp_path: Path) -> Runner:
    """A CI server with a repository as the examples' text describes it. Soaks are short, all else is as in the examples."""
    repository = tmp_path / "repository"
    (repository / "ci").mkdir(parents=True)
    shutil.copy2(EXAMPLES / "rollout.sh", repository / "ci")
    settings = yaml.safe_load((EXAMPLES / "rollout.yml").read_text(encoding="utf-8"))
    settings["upgrade_gate"]["soak_s"] = 1
    (repository / "rollout.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for name in HOSTS:
        fleet.add_host(name)
    (repository / "inventory.json").write_text(
        json.dumps({"hypervisors": {"hosts": fleet.inventory}}), encoding="utf-8"
    )
    (repository / "ansible.cfg").write_text(
        "[defaults]\ninventory = inventory.json\ncallbacks_enabled = vmm.live_upgrade.progress\n", encoding="utf-8"
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    bin_folder = Path(sys.executable).parent
    environment = {
        **base_environment(),
        "PATH": f"{tools}:{bin_folder}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(fleet.root / "collections"),
        "ANSIBLE_HOME": str(fleet.root / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "XDG_STATE_HOME": str(fleet.state),
    }
    return Runner(repository, tmp_path / "jobs", environment)


def status(runner: Runner, results: str, name: str = "upgrade.status.json") -> dict[str, Any]:
    path = runner.results[results] / "build" / "results" / name
    return dict(json.loads(path.read_text(encoding="utf-8")))


def builds(fleet: Fleet) -> list[str]:
    return [fleet.builds(name)["vm1"] for name in HOSTS]


def test_github_rolls_out_wave_by_wave_and_goes_back(fleet: Fleet, runner: Runner) -> None:
    GitHub(EXAMPLES / "github" / "rollout.yml", runner).run(build=NEW)

    assert {name: code for name, (code, _output) in runner.ended.items()} == dict.fromkeys(
        ("plan", "canary", "early", "rest"), 0
    ), runner.ended
    assert [status(runner, f"results-{name}")["status"] for name in ("canary", "early", "rest")] == [
        "wave_done",
        "wave_done",
        "done",
    ]
    assert builds(fleet) == [NEW] * 5
    assert "hash: " in (runner.root / "summary of plan").read_text(encoding="utf-8")

    GitHub(EXAMPLES / "github" / "rollback.yml", runner).run(run_id="1", results="results-rest")

    assert runner.ended["rollback"][0] == 0, runner.ended["rollback"][1]
    assert builds(fleet) == [OLD] * 5


def test_github_ends_after_a_canary_that_went_back(fleet: Fleet, runner: Runner) -> None:
    fleet.change("h1", "vm1", sick_on=[NEW])

    GitHub(EXAMPLES / "github" / "rollout.yml", runner).run(build=NEW)

    assert runner.ended["canary"][0] == 20, runner.ended["canary"][1]
    assert "rollout: rolled_back: wave 0 FAIL" in runner.ended["canary"][1]
    assert set(runner.ended) == {"plan", "canary"}
    assert status(runner, "results-canary")["status"] == "rolled_back", "the results are kept of a job that failed, too"
    assert builds(fleet) == [OLD] * 5


def test_gitlab_stops_in_a_later_wave_and_a_person_goes_back_on_all(fleet: Fleet, runner: Runner) -> None:
    fleet.change("h5", "vm1", sick_on=[NEW])
    pipeline = GitLab(EXAMPLES / "gitlab" / "gitlab-ci.yml", runner)

    pipeline.run(start=lambda job: job == "nobody", BUILD=NEW)
    assert set(runner.ended) == {"plan"}, "nobody has approved"
    shutil.rmtree(runner.root)

    pipeline.run(BUILD=NEW)

    assert {name: code for name, (code, _output) in runner.ended.items()} == {
        "plan": 0,
        "canary": 0,
        "early": 0,
        "rest": 20,
    }
    assert builds(fleet) == [NEW, NEW, OLD, OLD, OLD], "the wave that failed is back, those before are not"
    fake_downloads(Path(runner.environment["PATH"].partition(":")[0]), runner)
    gitlab = {"CI_API_V4_URL": "https://gitlab.example/api/v4", "CI_PROJECT_ID": "7"}

    pipeline.run(ROLLBACK_JOB="rest", ROLLOUT_API_TOKEN="secret", **gitlab)

    assert runner.ended["rollback"][0] == 0, runner.ended["rollback"][1]
    assert builds(fleet) == [OLD] * 5
    assert status(runner, "rollback", "rollback.status.json")["status"] == "done"


def test_a_canary_that_was_not_approved_is_told_from_one_that_failed(fleet: Fleet, runner: Runner) -> None:
    pipeline = GitLab(EXAMPLES / "gitlab" / "gitlab-ci.yml", runner)
    pipeline.run(start=lambda job: job == "nobody", BUILD=NEW)
    place = runner.check_out("by hand")
    runner.fetch("plan", place)
    script = (
        "ci/rollout.sh vmm.live_upgrade.upgrade -e upgrade_plan=build/results/plan.json -e upgrade_approved=" + "0" * 64
    )

    assert runner.run("by hand", script, place, {}) == 26
    assert "rollout: not_approved: the approval is of another plan" in runner.ended["by hand"][1]
    assert runner.run("wrong", "ci/rollout.sh --no-such-option", place, {}) == 27, "and the old status is no answer"
    assert builds(fleet) == [OLD] * 5
