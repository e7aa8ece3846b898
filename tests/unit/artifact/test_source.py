# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources are what their digest says, or are not used."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact import source as source_module
from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.source import (
    Candidate,
    SourceError,
    apply_patches,
    debian_mirrors,
    lay_over,
    obtain,
    read_overlay,
    read_series,
    unpack,
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory served over http on loopback."""
    directory = tmp_path / "pool"
    directory.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield directory, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _tarball(path: Path, files: dict[str, str]) -> str:
    """Make a tarball with one top directory and return its digest."""
    tree = path.parent / f"tree-{path.name}" / "top"
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["tar", "-C", tree.parent, "-cJf", path, "top"], check=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_first_candidate_that_is_there_is_taken(pool: tuple[Path, str], tmp_path: Path) -> None:
    directory, address = pool
    digest = _tarball(directory / "qemu-2.tar.xz", {"VERSION": "2"})
    said: list[str] = []

    source = obtain(
        [
            Candidate(url=f"{address}/qemu-3.tar.xz", sha256="1" * 64),
            Candidate(url=f"{address}/qemu-2.tar.xz", sha256=digest),
        ],
        tmp_path / "cache",
        said.append,
    )

    assert (source.name, source.sha256) == ("qemu-2.tar.xz", digest)
    assert f"source qemu-3.tar.xz is not there: {address}/qemu-3.tar.xz: 404 File not found" in said


def test_debian_pool_is_looked_for_on_every_mirror(
    pool: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, address = pool
    (directory / "second" / "pool").mkdir(parents=True)
    digest = _tarball(directory / "second" / "pool" / "qemu.tar.xz", {"VERSION": "2"})
    monkeypatch.setattr(source_module, "debian_mirrors", lambda: [f"{address}/first", f"{address}/second"])

    source = obtain([Candidate(debian_pool="pool/qemu.tar.xz", sha256=digest)], tmp_path / "cache", lambda _line: None)

    assert (source.name, source.sha256) == ("qemu.tar.xz", digest)


APT = """#!/bin/sh
[ "$*" = "--print-uris update" ] || exit 9
echo "'http://mirror.example/debian/dists/bookworm/InRelease' mirror.example_debian_dists_bookworm_InRelease 0 "
echo "'http://mirror.example/debian/dists/bookworm-updates/InRelease' mirror.example_updates_InRelease 0 "
echo "'https://mirror.example/debian-security/dists/bookworm-security/InRelease' mirror.example_security_InRelease 0 "
"""


@pytest.mark.parametrize(
    ("apt", "mirrors"),
    [
        pytest.param(APT, ["http://mirror.example/debian", "https://mirror.example/debian-security"], id="some"),
        pytest.param("#!/bin/sh\n", "with no mirror", id="none"),
        pytest.param(None, "no apt", id="no-apt"),
    ],
)
def test_mirrors_are_those_of_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str | None, mirrors: list[str] | str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if apt is not None:
        (tmp_path / "apt-get").write_text(apt)
        (tmp_path / "apt-get").chmod(0o755)

    if isinstance(mirrors, list):
        assert debian_mirrors() == mirrors
    else:
        with pytest.raises(FileNotFoundError, match=mirrors):
            debian_mirrors()


def test_wrong_digest_is_an_error_and_not_kept(pool: tuple[Path, str], tmp_path: Path) -> None:
    directory, address = pool
    digest = _tarball(directory / "good.tar.xz", {"VERSION": "2"})
    _tarball(directory / "bad.tar.xz", {"VERSION": "evil"})
    candidates = [
        Candidate(url=f"{address}/bad.tar.xz", sha256="2" * 64),
        Candidate(url=f"{address}/good.tar.xz", sha256=digest),
    ]

    with pytest.raises(SourceError, match="expected was 2222"):
        obtain(candidates, tmp_path / "cache", lambda _line: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_changed_cache_is_noticed(tmp_path: Path) -> None:
    digest = _tarball(tmp_path / "qemu.tar.xz", {"VERSION": "2"})
    candidate = Candidate(path=str(tmp_path / "qemu.tar.xz"), sha256=digest)
    kept = obtain([candidate], tmp_path / "cache", lambda _line: None).archives[0]
    kept.write_bytes(b"changed")

    with pytest.raises(SourceError, match="has changed since it was verified"):
        obtain([candidate], tmp_path / "cache", lambda _line: None)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"url": "https://example.org/q.tar.xz"}, "sha256 is required"),
        ({"path": "/q.tar.xz", "sha256": "abc"}, "sha256 is required"),
        ({"debian_pool": "pool/main/q/qemu/q.tar.xz"}, "sha256 is required"),
        ({}, "exactly one of"),
        ({"url": "https://example.org/q", "path": "/q", "sha256": "0" * 64}, "exactly one of"),
    ],
)
def test_candidates_that_cannot_be_verified_are_refused(values: dict[str, str], why: str) -> None:
    with pytest.raises(SourceError, match=why):
        Candidate(**values)


def test_other_schemes_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="only http and https"):
        obtain([Candidate(url="ftp://example.org/q.tar.xz", sha256="0" * 64)], tmp_path / "cache", lambda _line: None)


def test_nothing_there_names_all_that_was_tried(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no source can be had: a.tar.xz .*; b.tar.xz"):
        obtain(
            [Candidate(path=f"/nonexistent/{name}.tar.xz", sha256="0" * 64) for name in "ab"],
            tmp_path / "cache",
            lambda _line: None,
        )


def test_debian_source_package_is_unpacked_with_its_patches(pool: tuple[Path, str], tmp_path: Path) -> None:
    directory, address = pool
    orig = _tarball(directory / "q_1.orig.tar.xz", {"VERSION": "1", "configure": ""})
    patch = "--- a/VERSION\n+++ b/VERSION\n@@ -1 +1 @@\n-1\n\\ No newline at end of file\n+1-debian\n"
    packaging = directory / "packaging"
    (packaging / "debian" / "patches").mkdir(parents=True)
    (packaging / "debian" / "patches" / "series").write_text("one.patch\n")
    (packaging / "debian" / "patches" / "one.patch").write_text(patch)
    subprocess.run(["tar", "-C", packaging, "-cJf", directory / "q_1-1.debian.tar.xz", "debian"], check=True)
    debian = hashlib.sha256((directory / "q_1-1.debian.tar.xz").read_bytes()).hexdigest()
    dsc = (
        f"Format: 3.0 (quilt)\nChecksums-Sha256:\n {orig} 1 q_1.orig.tar.xz\n {debian} 1 q_1-1.debian.tar.xz\nFiles:\n"
    )
    (directory / "q_1-1.dsc").write_text(dsc)
    candidate = Candidate(url=f"{address}/q_1-1.dsc", sha256=hashlib.sha256(dsc.encode()).hexdigest())

    unpack(obtain([candidate], tmp_path / "cache", lambda _line: None), tmp_path / "tree")

    assert (tmp_path / "tree" / "VERSION").read_text() == "1-debian\n"


def test_directory_is_known_by_its_contents(tmp_path: Path) -> None:
    tree = tmp_path / "qemu"
    (tree / ".git").mkdir(parents=True)
    (tree / "configure").write_text("")

    def digest() -> str:
        return obtain([Candidate(directory=str(tree))], tmp_path / "cache", lambda _line: None).sha256

    first = digest()
    (tree / ".git" / "HEAD").write_text("x")
    assert digest() == first
    (tree / "configure").write_text("changed")
    assert digest() != first


def test_patch_that_does_not_apply_is_named(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "series").write_text("# comment\nbad.patch # why\n")
    (tmp_path / "patches" / "bad.patch").write_text("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-no\n+yes\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").write_text("other\n")

    with pytest.raises(SourceError, match="patch bad.patch does not apply"):
        apply_patches(read_series(tmp_path / "patches"), tmp_path / "tree")


@pytest.mark.parametrize("name", ["missing.patch", "../outside.patch"])
def test_series_may_only_name_what_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.patch").write_text("")
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "series").write_text(f"{name}\n")
    with pytest.raises(SourceError, match="is not a file below it"):
        read_series(tmp_path / "patches")


def _overlay(directory: Path) -> Path:
    (directory / "migration").mkdir(parents=True)
    (directory / "migration" / "new.c").write_text("new\n")
    (directory / "left-behind.c").write_text("not listed\n")
    (directory / "files").write_text("migration/new.c\n")
    return directory


def test_overlay_adds_the_files_that_it_lists(tmp_path: Path) -> None:
    files = read_overlay(_overlay(tmp_path / "overlay"))

    lay_over(files, tmp_path / "tree")

    assert [str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*.c")] == [
        "migration/new.c"
    ]
    assert [file.sha256 for file in files] == [hashlib.sha256(b"new\n").hexdigest()]


def test_overlay_changes_no_file_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "tree" / "migration").mkdir(parents=True)
    (tmp_path / "tree" / "migration" / "new.c").write_text("theirs\n")

    with pytest.raises(SourceError, match="has a migration/new.c already"):
        lay_over(read_overlay(_overlay(tmp_path / "overlay")), tmp_path / "tree")
    assert (tmp_path / "tree" / "migration" / "new.c").read_text() == "theirs\n"
