# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of a Debian for the lab's kernels, with apt's trust but apart from the machine's apt set-up."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cache import file_sha256
from .mirrors import source_lines
from .progress import LabError, Progress


@dataclass(frozen=True)
class Candidate:
    """One package version that the signed index names."""

    package: str
    version: str
    sha256: str
    pool_path: str


class PrivateApt:
    """apt for ``suite``, with lists, state and cache in ``folder``. ``update()`` first."""

    def __init__(self, folder: Path, suite: str) -> None:
        self._folder = folder
        self._suite = suite
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "lab.list").write_text("".join(f"{line}\n" for line in source_lines(suite)))

    def update(self) -> None:
        """Fetch and verify the indexes. Raises LabError when apt says no."""
        self._apt("apt-get", "-q", "update")

    def candidates(self, name: re.Pattern[str]) -> list[Candidate]:
        """All versions of the packages of the kernel whose whole name matches, newest first."""
        listing = self._apt("apt-cache", "search", "--names-only", "^linux-")
        names = [line.split(" ")[0] for line in listing.splitlines()]
        names = [package for package in names if name.fullmatch(package)]
        if not names:
            raise LabError(f"Debian {self._suite} has no package named like {name.pattern}")
        found = []
        for stanza in self._apt("apt-cache", "show", *names).split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
            if "SHA256" in fields:
                found.append(Candidate(fields["Package"], fields["Version"], fields["SHA256"], fields["Filename"]))
        return sorted(found, key=lambda candidate: version_key(candidate.version), reverse=True)

    def fetch_first(self, candidates: list[Candidate], target: Path, progress: Progress) -> tuple[Candidate, Path]:
        """Download into folder ``target`` the first candidate that arrives whole: an index can be ahead of the pool.

        Returns the one taken and its file. Raises LabError when none arrives.
        """
        refusals = []
        for candidate in candidates:
            path = target / os.path.basename(candidate.pool_path)
            problem = self._fetch(candidate, path)
            if problem is None:
                progress.say(f"took {candidate.package} {candidate.version} ({candidate.pool_path})")
                return candidate, path
            refusals.append(f"{candidate.package} {candidate.version}: {problem}")
            progress.say(f"not to be had: {refusals[-1]}; trying the next")
        raise LabError("no kernel package could be fetched:\n  " + "\n  ".join(refusals or ["the index names none"]))

    def _fetch(self, candidate: Candidate, path: Path) -> str | None:
        """None when the file is at ``path`` and is what the index promised, else the reason."""
        command = ["apt-get", *self._options(), "-q", "download", f"{candidate.package}={candidate.version}"]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["apt-get download failed"])[-1]
        # apt names the file after package and version, which is the pool's name but for characters it quotes.
        arrived = list(path.parent.glob(f"{candidate.package}_*.deb"))
        if len(arrived) != 1:
            return f"apt left {[file.name for file in arrived]} where one file was expected"
        digest = file_sha256(arrived[0])
        if digest != candidate.sha256:
            arrived[0].unlink()
            return f"its sha256 is {digest}, the signed index says {candidate.sha256}"
        arrived[0].rename(path)
        return None

    def _options(self) -> list[str]:
        f = self._folder
        return [
            "-o", f"Dir::State={f}", "-o", f"Dir::State::Lists={f}/lists", "-o", f"Dir::State::status={f}/status",
            "-o", f"Dir::Cache={f}/cache", "-o", f"Dir::Etc::sourcelist={f}/lab.list",
            "-o", f"Dir::Etc::sourceparts={f}/etc", "-o", f"Dir::Etc::preferencesparts={f}/etc",
            "-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3",
        ]  # fmt: skip

    def _apt(self, tool: str, *arguments: str) -> str:
        done = subprocess.run([tool, *self._options(), *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"{tool} {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


def version_key(version: str) -> list[int]:
    """For sorting: the numbers in a version."""
    return [int(number) for number in re.findall(r"\d+", version)]
