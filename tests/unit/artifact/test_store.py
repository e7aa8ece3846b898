# SPDX-License-Identifier: GPL-3.0-or-later
"""A build is staged whole or not at all, and never taken away from under a process."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore, StoreError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.tests.unit.artifact.conftest import SCRIPT, MakeArtifact, member, write_tar

FIRST, SECOND, THIRD = (f"qemu-11.1.1-{number:016x}" for number in (1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> BuildStore:
    return BuildStore(tmp_path / "state")


def _left_behind(tmp_path: Path) -> list[str]:
    builds = tmp_path / "state" / "builds"
    return sorted(path.name for path in builds.iterdir() if path.name != ".lock") if builds.exists() else []


def test_build_is_staged_and_staging_again_changes_nothing(store: BuildStore, make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()

    staged = store.stage(artifact)
    inode = (staged.path / "manifest.json").stat().st_ino
    again = store.stage(artifact)

    assert staged.manifest.build_id == FIRST
    assert (again.path / "manifest.json").stat().st_ino == inode
    assert store.get(FIRST).path == staged.path


def test_refused_when_the_digest_differs(store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    artifact = make_artifact()
    with open(artifact, "ab") as stream:
        stream.write(b"\0")

    with pytest.raises(StoreError, match="is refused: its SHA-256 is"):
        store.stage(artifact)
    assert _left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "hostile",
    [
        member("/etc/passwd", b"x"),
        member("../outside", b"x"),
        member("share/../../outside", b"x"),
        member("share/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("share/hard", type=tarfile.LNKTYPE, linkname="manifest.json"),
        member("share/device", type=tarfile.CHRTYPE),
        member("share/fifo", type=tarfile.FIFOTYPE),
        member("bin/setuid", b"x", 0o4755),
        member("bin/writable", b"x", 0o777),
    ],
    ids=["absolute", "parent", "hidden-parent", "symlink", "hardlink", "device", "fifo", "setuid", "world-writable"],
)
def test_hostile_members_are_refused(
    store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes]
) -> None:
    with pytest.raises(StoreError, match="not a plain file in a safe place"):
        store.stage(make_artifact(extra=[hostile]))
    assert _left_behind(tmp_path) == []


def test_directory_for_a_manifest_is_refused(store: BuildStore, tmp_path: Path) -> None:
    artifact = write_tar(tmp_path / f"{FIRST}.tar.gz", [member("manifest.json", type=tarfile.DIRTYPE, mode=0o755)])

    with pytest.raises(StoreError, match="its member 'manifest.json' is not a file"):
        store.stage(artifact)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"manifest": {"architecture": "s390x"}}, "it is for s390x, this host is"),
        ({"manifest": {"build_id": "latest"}}, "'latest' is not a build id"),
        ({"manifest": {"kind": "kvm"}}, "of kind 'kvm'"),
        ({"manifest": {"schema": 99}}, "schema 99"),
        ({"manifest": {"files": []}}, "files of the manifest is not of type dict"),
        ({"manifest": {"machine_types": ["pc-q35-99.0"]}}, "does not know machine type pc-q35-99.0"),
        ({"extra": [member("share/qemu/more", b"x")]}, "files and manifest differ in share/qemu/more"),
        ({"listed": {"share/qemu/absent": "0" * 64}}, "files and manifest differ in share/qemu/absent"),
        ({"listed": {"share/qemu/bios-256k.bin": "0" * 64}}, "share/qemu/bios-256k.bin is not the file"),
        ({"script": "#!/bin/sh\necho another\n"}, "says it is another: another"),
        ({"script": "#!/bin/sh\necho crash >&2; exit 3\n"}, "does not run on this host: crash"),
        ({"script": "#!/nonexistent/interpreter\n"}, "does not run on this host"),
    ],
)
def test_build_that_is_not_what_it_says_is_refused(
    store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path, options: dict[str, object], why: str
) -> None:
    with pytest.raises(LiveUpgradeError, match=why):
        store.stage(make_artifact(**options))
    assert _left_behind(tmp_path) == []


def test_text_file_is_no_artifact(store: BuildStore, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("hello")
    digest = subprocess.run(["sha256sum", tmp_path / "x.tar.gz"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(StoreError, match="not an artifact of this collection"):
        store.stage(tmp_path / "x.tar.gz", digest.split()[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 70 MiB: less than an artifact of some MiB and the spare room."""
    mount_point = tmp_path / "state"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", mount_point], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", mount_point], check=True)


def test_full_disk_is_refused_up_front(
    small_disk: Path, store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="MiB free, build .* needs"):
        store.stage(make_artifact(extra=[member("share/qemu/big", bytes(8 << 20))]))
    assert _left_behind(tmp_path) == []


def test_disk_that_fills_up_meanwhile_leaves_nothing(
    small_disk: Path,
    store: BuildStore,
    make_artifact: MakeArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    with pytest.raises(StoreError, match="was not staged: No space left"):
        store.stage(make_artifact(extra=[member("share/qemu/big", bytes(100 << 20))]))
    assert _left_behind(tmp_path) == []


def test_unknown_and_malformed_ids_are_told_apart(store: BuildStore, make_artifact: MakeArtifact) -> None:
    store.stage(make_artifact())
    with pytest.raises(StoreError, match=f"build {SECOND} is not staged on .*; staged: {FIRST}"):
        store.get(SECOND)
    with pytest.raises(StoreError, match=r"'\.\./x' is not a build id"):
        store.get("../x")


def test_prune_keeps_the_last_the_default_and_what_runs(store: BuildStore, make_artifact: MakeArtifact) -> None:
    for number in range(1, 6):
        store.stage(make_artifact(number=number))
    store.set_default(FIRST)
    binary = store.get(SECOND).path / "bin" / "qemu-system-x86_64"
    shutil.copy2("/bin/sleep", binary)  # a script's process has the shell as its executable
    with subprocess.Popen([binary, "600"]) as running:
        removed = store.prune(1)
        with pytest.raises(StoreError, match=f"in use by process {running.pid}"):
            store.remove(SECOND)
        running.kill()

    assert removed == [THIRD, f"qemu-11.1.1-{4:016x}"]
    assert [build.manifest.build_id for build in store.list()] == [FIRST, SECOND, f"qemu-11.1.1-{5:016x}"]
    assert store.prune(1) == [SECOND]


def test_default_is_not_removed(store: BuildStore, make_artifact: MakeArtifact) -> None:
    store.stage(make_artifact())
    store.set_default(FIRST)
    with pytest.raises(StoreError, match="set another default"):
        store.remove(FIRST)
    assert store.default() == FIRST


def test_default_must_be_staged(store: BuildStore) -> None:
    with pytest.raises(StoreError, match="not staged"):
        store.set_default(FIRST)
    assert store.default() is None


def test_removed_build_is_gone(store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    store.stage(make_artifact())
    assert store.remove(FIRST) is True
    assert store.remove(FIRST) is False
    assert _left_behind(tmp_path) == []


def test_leftover_of_a_killed_run_is_cleaned(store: BuildStore, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    leftover = tmp_path / "state" / "builds" / ".staging-killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text(SCRIPT)

    store.stage(make_artifact())

    assert _left_behind(tmp_path) == [FIRST]


class TestSignature:
    """With a real ssh-keygen."""

    @pytest.fixture
    def signers(self, tmp_path: Path) -> Path:
        for name in ("ours", "theirs"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
        allowed = tmp_path / "allowed_signers"
        allowed.write_text(f"release@example.org {(tmp_path / 'ours.pub').read_text()}")
        return allowed

    @staticmethod
    def _sign(artifact: Path, key: Path, namespace: str = "vmm.live_upgrade") -> None:
        subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, artifact], check=True)

    def test_signed_by_us_is_staged(
        self, store: BuildStore, make_artifact: MakeArtifact, signers: Path, tmp_path: Path
    ) -> None:
        artifact = make_artifact()
        self._sign(artifact, tmp_path / "ours")
        assert store.stage(artifact, None, signers).manifest.build_id == FIRST

    def test_unsigned_is_refused(
        self, store: BuildStore, make_artifact: MakeArtifact, signers: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(LiveUpgradeError, match="its signature .* is missing"):
            store.stage(make_artifact(), None, signers)
        assert _left_behind(tmp_path) == []

    def test_signed_by_others_is_refused(
        self, store: BuildStore, make_artifact: MakeArtifact, signers: Path, tmp_path: Path
    ) -> None:
        artifact = make_artifact()
        self._sign(artifact, tmp_path / "theirs")
        with pytest.raises(LiveUpgradeError, match="nobody in .* made its signature"):
            store.stage(artifact, None, signers)
        assert _left_behind(tmp_path) == []

    def test_signature_of_another_file_is_refused(
        self, store: BuildStore, make_artifact: MakeArtifact, signers: Path, tmp_path: Path
    ) -> None:
        other, artifact = make_artifact(number=2), make_artifact(number=1)
        self._sign(other, tmp_path / "ours")
        shutil.move(f"{other}.sig", f"{artifact}.sig")
        with pytest.raises(LiveUpgradeError, match="signature does not match"):
            store.stage(artifact, None, signers)
        assert _left_behind(tmp_path) == []
