# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the CI pipelines of docs/examples/ci: job by job, each in a fresh working copy, by the commands of the files.

Knows of GitHub Actions and GitLab CI what the examples use, and refuses everything else: what is not carried out is not tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_LIMIT_S = 600


@dataclass
class Runner:
    """A CI server: ``repository`` is checked out for each job below ``root``; ``environment`` is that of its runners.

    ``results``: job → where its artifacts are kept; ``ended``: job → exit status and output of its commands.
    """

    repository: Path
    root: Path
    environment: Mapping[str, str]
    results: dict[str, Path] = field(default_factory=dict)
    ended: dict[str, tuple[int, str]] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)

    def check_out(self, name: str) -> Path:
        """Return a fresh working copy."""
        place = self.root / name
        shutil.copytree(self.repository, place)
        return place

    def keep(self, name: str, place: Path, path: str) -> None:
        """Keep ``path`` of a working copy as artifacts."""
        self.results[name] = self.root / f"artifacts of {name}"
        shutil.copytree(place / path, self.results[name] / path)

    def fetch(self, name: str, place: Path) -> None:
        """Put artifacts where they were."""
        shutil.copytree(self.results[name], place, dirs_exist_ok=True)

    def run(self, job: str, script: str, place: Path, variables: Mapping[str, str]) -> int:
        """Run commands as both servers do: by bash, which stops at the first that fails."""
        environment = {**self.environment, **variables, "PWD": str(place)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        before = self.ended.get(job, (0, ""))
        self.ended[job] = (before[0] or done.returncode, before[1] + done.stdout)
        return done.returncode


class GitHub:
    """A workflow of GitHub Actions."""

    def __init__(self, path: Path, runner: Runner) -> None:
        self._jobs: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        self._runner = runner
        self._outputs: dict[str, dict[str, str]] = {}

    def run(self, **inputs: str) -> None:
        """Run the jobs in their order, each when all that it needs succeeded."""
        context = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.token": "t"}
        for name, job in self._jobs.items():
            _only(job, "needs", "environment", "runs-on", "outputs", "steps")
            needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
            if all(self._runner.ended.get(need, (1, ""))[0] == 0 for need in needs):
                self._run_job(name, job, context)

    def _run_job(self, name: str, job: dict[str, Any], context: dict[str, str]) -> None:
        known = dict(context)
        for other, outputs in self._outputs.items():
            known.update({f"needs.{other}.outputs.{key}": value for key, value in outputs.items()})
        self._runner.ended[name] = (0, "")
        place = Path()
        for step in job["steps"]:
            _only(step, "id", "name", "if", "uses", "with", "env", "run")
            assert step.get("if") in (None, "always()"), step
            if self._runner.ended[name][0] and "if" not in step:
                continue
            if "uses" in step:
                place = self._use(step["uses"], _filled(step.get("with", {}), known), name, place)
                continue
            assert not re.search(
                r"\$\{\{", step["run"]
            ), "what comes from outside belongs into env, or it could be a command"
            output = self._runner.root / f"output of {name}"
            output.write_text("", encoding="utf-8")
            summary = str(self._runner.root / f"summary of {name}")
            files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": summary}
            self._runner.run(name, step["run"], place, {**files, **_filled(step.get("env", {}), known)})
            for line in output.read_text(encoding="utf-8").splitlines():
                key, _sign, value = line.partition("=")
                known[f"steps.{step['id']}.outputs.{key}"] = value
        self._outputs[name] = _filled(job.get("outputs", {}), known)

    def _use(self, action: str, options: dict[str, str], job: str, place: Path) -> Path:
        kind = action.partition("@")[0]
        if kind == "actions/checkout":
            return self._runner.check_out(f"work of {job}")
        if kind == "actions/download-artifact":
            _only(options, "name", "path", "run-id", "github-token")
            assert (self._runner.results[options["name"]] / options["path"]).is_dir()
            self._runner.fetch(options["name"], place)
            return place
        assert kind == "actions/upload-artifact", action
        _only(options, "name", "path")
        self._runner.keep(options["name"], place, options["path"])
        return place


class GitLab:
    """A pipeline of GitLab CI. ``start``: whether a person starts a job that waits for one."""

    def __init__(self, path: Path, runner: Runner) -> None:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        _only(
            {k: v for k, v in found.items() if not isinstance(v, dict) or "stage" not in v},
            "stages",
            "workflow",
            "default",
            ".wave",
        )
        self._templates = {name: job for name, job in found.items() if name.startswith(".")}
        self._stages: list[str] = found["stages"]
        self._jobs = {name: job for name, job in found.items() if isinstance(job, dict) and "stage" in job}
        self._runner = runner

    def run(self, start: Callable[[str], bool] = lambda job: True, **variables: str) -> None:
        """Run the jobs of a pipeline with ``variables``, stage by stage."""
        for name, own in sorted(self._jobs.items(), key=lambda item: self._stages.index(item[1]["stage"])):
            job = {**self._templates.get(own.get("extends", ""), {}), **own}
            known = (
                "stage",
                "extends",
                "resource_group",
                "artifacts",
                "rules",
                "environment",
                "needs",
                "variables",
                "script",
            )
            _only(job, *known)
            rule = next((rule for rule in job["rules"] if variables.get(rule["if"].removeprefix("$"))), None)
            needs = job.get("needs", [])
            if rule is None or any(self._runner.ended.get(need, (1, ""))[0] for need in needs):
                continue
            if rule.get("when") == "manual" and not start(name):
                continue
            self._run_job(name, job, needs, variables)

    def _run_job(self, name: str, job: dict[str, Any], needs: list[str], variables: Mapping[str, str]) -> None:
        place = self._runner.check_out(f"work of {name}")
        given = {**variables, **job.get("variables", {})}
        for need in needs:
            self._runner.fetch(need, place)
            given.update(self._runner.variables.get(need, {}))
        failed = self._runner.run(name, "\n".join(job["script"]), place, given)
        artifacts = job["artifacts"]
        _only(artifacts, "when", "paths", "reports")
        if failed and artifacts.get("when") != "always":
            return
        for path in artifacts["paths"]:
            self._runner.keep(name, place, path)
        reports = artifacts["reports"]
        _only(reports, "dotenv", "junit")
        if "dotenv" in reports:
            lines = (place / reports["dotenv"]).read_text(encoding="utf-8").splitlines()
            self._runner.variables[name] = dict(line.split("=", 1) for line in lines)
        if "junit" in reports and not failed:
            assert (place / reports["junit"]).is_file()


def fake_downloads(folder: Path, runner: Runner) -> None:
    """Make a ``curl`` in ``folder`` that gets the artifacts of a job as an archive, as GitLab's interface has them."""
    for name, place in runner.results.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted(place.rglob("*")):
                archive.write(path, path.relative_to(place))
    script = folder / "curl"
    script.write_text(
        '#!/bin/bash\n[[ $* == *"--header PRIVATE-TOKEN: secret "* ]] || { echo 401; exit 22; }\n'
        'while [ "$1" != --output ]; do shift; done\n'
        "[[ $3 == https://gitlab.example/api/v4/projects/7/jobs/*/artifacts ]] || { echo 404; exit 22; }\n"
        f'job=${{3%/artifacts}}\ncp "{folder}/${{job##*/}}.zip" "$2"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)


def _filled(values: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    return {
        name: re.sub(r"\$\{\{ ([a-zA-Z0-9_.-]+) \}\}", lambda found: known[found[1]], str(value))
        for name, value in values.items()
    }


def _only(found: Mapping[str, Any], *known: str) -> None:
    strange = set(found) - set(known)
    assert not strange, f"{strange} is not carried out here, so it would not be tested"


def base_environment() -> dict[str, str]:
    """Return the environment of a runner: without what the tests were started with."""
    keep = ("PATH", "HOME", "LANG", "USER")
    return {key: os.environ[key] for key in keep if key in os.environ}
