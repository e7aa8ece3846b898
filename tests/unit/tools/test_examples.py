# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation name what there is: playbooks, modules, variables, files; their shell parts are sound."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples"
RULEBOOKS = ROOT / "extensions" / "eda" / "rulebooks"
# Where the examples live in a repository of the user's, by what they are called there.
IN_REPOSITORY = {"ci/rollout.sh": EXAMPLES / "ci" / "rollout.sh", "rollout.yml": EXAMPLES / "ci" / "rollout.yml"}

_OURS = re.compile(r"\b(?:upgrade|rollback|stage|preflight|report|status|build|kvm)_[a-z_]+\b")
_NOT_VARIABLES = {"rollback_on_alert", "report_path", "status_file"}


class _Loader(yaml.SafeLoader):
    """YAML as Ansible reads it."""


def _as_written(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!unsafe", _as_written)


def texts() -> dict[str, str]:
    """Return path → content of every example."""
    paths = [path for folder in (EXAMPLES, RULEBOOKS) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in paths
        if "__pycache__" not in path.parts
    }


def problems(text: str) -> list[str]:
    """Return what of the collection ``text`` names that there is not."""
    found = []
    for name in sorted(set(re.findall(r"\bvmm\.live_upgrade\.([a-z_]+)\b", text))):
        places = [
            ROOT / "playbooks" / f"{name}.yml",
            ROOT / "plugins" / "callback" / f"{name}.py",
            RULEBOOKS / f"{name}.yml",
        ]
        if not any(place.is_file() for place in places):
            found.append(f"no playbook {name}")
    known = variables()
    given = set(re.findall(r"-e \"?([a-z_]+)=", text)) | set(re.findall(r"^\s*([a-z_]+):", text, re.M))
    given |= set(re.findall(r"\b([a-z_]+)=[a-z]", text))
    found += [
        f"no variable {name}" for name in sorted(given) if _OURS.fullmatch(name) and name not in known | _NOT_VARIABLES
    ]
    found += [
        f"no file {name}"
        for name in re.findall(r"(?<![\w/.])(ci/[a-z.]+|@[a-z.]+\.yml)", text)
        if name.lstrip("@") not in IN_REPOSITORY
    ]
    found += [f"no tag {name}" for name in re.findall(r"--(?:skip-)?tags[ =]\S+", text)]  # the playbooks have none
    return found


def variables() -> set[str]:
    """Return the variables that the playbooks take."""
    read = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "playbooks").glob("*.yml"))
    inside = " ".join(re.findall(r"\{\{.*?\}\}", read, re.S)) + " ".join(
        re.findall(r"(?m)^\s+(?:hosts|serial|when): .*$", read)
    )
    return {name for name in _OURS.findall(inside) if not name.startswith(("upgrade_host_", "rollback_host_"))}


@pytest.mark.parametrize("name", sorted(texts()))
def test_what_an_example_names_there_is(name: str) -> None:
    assert problems(texts()[name]) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run: ansible-playbook vmm.live_upgrade.upgrades", "no playbook upgrades"),
        ("run: ansible-playbook x -e upgrade_until_waves=1", "no variable upgrade_until_waves"),
        ('run: ansible-playbook x -e "upgrade_biuld=$BUILD"', "no variable upgrade_biuld"),
        ("  upgrade_wave: [1]", "no variable upgrade_wave"),
        ("play(directory, 'plan', upgrade_planned=plan)", "no variable upgrade_planned"),
        ("run: ci/roll.sh", "no file ci/roll.sh"),
        ("run: x -e @rollouts.yml", "no file @rollouts.yml"),
        ("run: x --tags canary", "no tag --tags canary"),
    ],
)
def test_what_there_is_not_is_found(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_the_right_text_has_no_problem() -> None:
    assert (
        problems(
            'ansible-playbook vmm.live_upgrade.upgrade -e @rollout.yml -e "upgrade_resume=$id" -e upgrade_until_wave=1'
        )
        == []
    )


def test_all_yaml_can_be_read() -> None:
    read = [
        name for name in texts() if name.endswith((".yml", ".yaml")) and yaml.load(texts()[name], _Loader)  # noqa: S506
    ]
    assert len(read) >= 9


def _scripts() -> Iterator[Any]:
    """Yield the shell parts of the pipelines, each with how it is called."""
    github = [(path, yaml.safe_load(path.read_text())) for path in sorted((EXAMPLES / "ci" / "github").glob("*.yml"))]
    for path, workflow in github:
        for job, content in workflow["jobs"].items():
            for step in content["steps"]:
                if "run" in step:
                    yield pytest.param(step["run"], id=f"{path.stem}-{job}")
    gitlab = yaml.safe_load((EXAMPLES / "ci" / "gitlab" / "gitlab-ci.yml").read_text())
    for job, content in gitlab.items():
        if isinstance(content, dict) and "script" in content:
            yield pytest.param("\n".join(content["script"]), id=f"gitlab-{job}")


@pytest.mark.parametrize("script", list(_scripts()))
def test_the_shell_parts_are_sound(script: str) -> None:
    # SC2154: the server gives the variables.
    checked = subprocess.run(
        ["shellcheck", "--shell=bash", "--exclude=SC2154", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_awx_workflow_has_no_loose_ends() -> None:
    (play,) = yaml.load((EXAMPLES / "ci" / "awx" / "workflow.yml").read_text(), _Loader)  # noqa: S506
    project = {path.name for path in (EXAMPLES / "ci" / "awx" / "project").glob("*.yml")}
    templates = {
        task["awx.awx.job_template"]["name"]: task["awx.awx.job_template"]
        for task in play["tasks"]
        if "awx.awx.job_template" in task
    }
    assert {template["playbook"] for template in templates.values()} == project
    (nodes,) = [
        task["awx.awx.workflow_job_template"]["workflow_nodes"]
        for task in play["tasks"]
        if "awx.awx.workflow_job_template" in task
    ]
    names = [node["identifier"] for node in nodes]
    leads_to = {one["identifier"] for node in nodes for ways in node.get("related", {}).values() for one in ways}
    assert leads_to == set(names) - {"plan"}
    started = {
        node["unified_job_template"]["name"] for node in nodes if node["unified_job_template"]["type"] == "job_template"
    }
    assert started == set(templates)


def test_the_rulebook_lets_no_stranger_and_no_path_in() -> None:
    (ruleset,) = yaml.safe_load((RULEBOOKS / "rollback_on_alert.yml").read_text())
    (source,) = ruleset["sources"]
    assert (
        source["eda.builtin.webhook"]["token"] == "{{ eda_token }}"
    ), "without a default: nobody is let in without one"
    (rule,) = ruleset["rules"]
    pattern = re.search(r'regex\("(.*)"\)', rule["condition"])
    assert pattern is not None
    for rollout_id, passes in (
        ("upgrade-20261126T232846Z-ffa362", True),
        ("../upgrade-20261126T232846Z-ffa362", False),
        ("upgrade-20261126T232846Z-ffa362.jsonl", False),
        ("rollback-20261126T232846Z-ffa362", False),
    ):
        assert bool(re.search(pattern[1], rollout_id)) is passes
    assert (
        rule["action"]["run_playbook"]["extra_vars"]["rollback_from"] == "{{ event.payload.commonLabels.rollout_id }}"
    )
