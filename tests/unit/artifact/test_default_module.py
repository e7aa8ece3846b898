# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module ``artifact_default``, for a rollout whose host another has taken since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease
from ansible_collections.vmm.live_upgrade.plugins.modules import artifact_default
from ansible_collections.vmm.live_upgrade.tests.unit.artifact.conftest import MakeArtifact

LEASE = {"token": 10, "owner": "controller-a", "seconds": 300}


def chosen(state_dir: Path, build_id: str, capsys: pytest.CaptureFixture[str], **more: Any) -> dict[str, Any]:
    """Run the module; return its answer."""
    arguments = {"build_id": build_id, "state_dir": str(state_dir), "rollout_id": "rollout-1", "lease": LEASE, **more}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        artifact_default.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_run_that_has_lost_the_host_does_not_choose_its_default(
    tmp_path: Path, make_artifact: MakeArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = tmp_path / "state"
    store = BuildStore(state_dir)
    one, two = (store.stage(make_artifact(number)).manifest.build_id for number in (1, 2))

    assert chosen(state_dir, one, capsys)["changed"] is True
    Lease(state_dir).take(Claim("rollout-2", "controller-b", 11, 300))
    late = chosen(state_dir, two, capsys)

    assert late["failed"] is True
    assert "a later run has taken this host since (rollout rollout-2" in late["msg"]
    assert "Nothing was touched" in late["msg"]
    assert store.default() == one
    assert chosen(state_dir, two, capsys, lease=None)["changed"] is True, "a person may"
