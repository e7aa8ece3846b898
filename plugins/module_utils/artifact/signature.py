# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detached signatures of artifacts, made and checked by OpenSSH's ``ssh-keygen -Y``. PRIVATE to the collection."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

NAMESPACE = "vmm.live_upgrade"


class SignatureError(LiveUpgradeError):
    """The artifact is not signed by somebody who may sign it."""


def verify_signature(artifact: Path, signature: Path, allowed_signers: Path) -> str:
    """Return who signed ``artifact``, one of ``allowed_signers`` (ALLOWED SIGNERS format of ssh-keygen(1)).

    Raises ``SignatureError``.
    """
    for path, what in ((signature, "signature"), (allowed_signers, "list of allowed signers")):
        if not path.is_file():
            raise SignatureError(f"{artifact.name} is refused: its {what} {path} is missing")
    found = _keygen("find-principals", allowed_signers, signature, artifact, [])
    signer = found.stdout.strip().partition("\n")[0]
    if found.returncode or not signer:
        raise SignatureError(f"{artifact.name} is refused: nobody in {allowed_signers} made its signature")
    checked = _keygen("verify", allowed_signers, signature, artifact, ["-I", signer])
    if checked.returncode:
        raise SignatureError(f"{artifact.name} is refused: its signature does not match: {checked.stderr.strip()}")
    return signer


def _keygen(
    action: str, allowed_signers: Path, signature: Path, artifact: Path, more: list[str]
) -> subprocess.CompletedProcess[str]:
    command = ["ssh-keygen", "-Y", action, "-n", NAMESPACE, "-f", str(allowed_signers), "-s", str(signature), *more]
    try:
        with open(artifact, "rb") as stream:
            return subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise SignatureError(
            f"{artifact.name} is refused: ssh-keygen, which checks signatures, is not installed"
        ) from exc
