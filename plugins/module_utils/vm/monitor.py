# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask one running QEMU about itself, within a bound of time. PRIVATE to the collection."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import (
    QmpBusyError,
    QmpClient,
    QmpCommandError,
    QmpDeadError,
    QmpTimeoutError,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import QmpEndpoint

CONNECT_S = 5.0
# A QEMU that has just answered at another monitor greets in no time, unless somebody holds this one.
HELD_S = 1.0
ANSWER_S = 15.0
TOTAL_S = 30.0
_TREE_LINE = re.compile(r"^\s*/.* \((.+)\)\r?$", re.MULTILINE)

# What is asked, under the names that the facts are read by. A QEMU that does not know one costs that fact alone.
_QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "version": ("query-version", {}),
    "status": ("query-status", {}),
    "migration": ("query-migrate", {}),
    "machine": ("qom-get", {"path": "/machine", "property": "type"}),
    "memory_backend": ("qom-get", {"path": "/machine", "property": "memory-backend"}),
    "ramblocks": ("x-query-ramblock", {}),
    "memdevs": ("query-memdev", {}),
    "block": ("query-block", {}),
    "nodes": ("query-named-block-nodes", {"flat": True}),
    "peripherals": ("qom-list", {"path": "/machine/peripheral"}),
    "anonymous": ("qom-list", {"path": "/machine/peripheral-anon"}),
    "objects": ("qom-list", {"path": "/objects"}),
    "chardevs": ("query-chardev", {}),
    "cpr_vfork": ("query-cpr-vfork", {}),
    "network": ("human-monitor-command", {"command-line": "info network"}),
}
# These came later than the oldest QEMU worth asking, or are absent from some machines: silence about them is no news.
_OPTIONAL = {"memory_backend", "ramblocks", "nodes", "cpr_vfork"}


@dataclass
class Answers:
    """What QEMU said: question → answer. ``asked`` is false when no monitor answered at all."""

    endpoints: list[QmpEndpoint] = field(default_factory=list)
    asked: bool = False
    said: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def listed(self, question: str) -> list[Any]:
        """Return an answer that is a list; empty when there is none."""
        value = self.said.get(question)
        return value if isinstance(value, list) else []

    def mapping(self, question: str) -> dict[str, Any]:
        """Return an answer that is a mapping; empty when there is none."""
        value = self.said.get(question)
        return value if isinstance(value, dict) else {}

    def text(self, question: str) -> str | None:
        """Return an answer that is a text; None when there is none."""
        value = self.said.get(question)
        return value if isinstance(value, str) else None


def ask(pid: int, paths: list[str]) -> Answers:
    """Try each monitor of ``pid`` and put the questions to the first that serves us. Raises nothing."""
    answers = Answers()
    for path in paths:
        answers.endpoints.append(_try_endpoint(pid, path, answers))
    return answers


def connect(pid: int, path: str, timeout_s: float = CONNECT_S) -> QmpClient:
    """Connect to the monitor at ``path`` in the mount namespace of ``pid``. Raises as ``QmpClient.connect``."""
    return QmpClient.connect(f"/proc/{pid}/root{path}", timeout_s)


def device_types(client: QmpClient) -> set[str]:
    """Return the type of every object below ``/machine``. Raises ``QmpError``.

    The human monitor tells the whole tree in one answer; QMP takes a question for each of some hundred objects.
    """
    tree = client.execute("human-monitor-command", {"command-line": "info qom-tree"}, ANSWER_S)
    return set(_TREE_LINE.findall(tree))


def _try_endpoint(pid: int, path: str, answers: Answers) -> QmpEndpoint:
    try:
        with connect(pid, path, HELD_S if answers.asked else CONNECT_S) as client:
            if not answers.asked:
                answers.asked = True
                put_questions(client, answers)
    except QmpBusyError:
        return QmpEndpoint(
            path, "busy", "connected, but not greeted: another client holds it, or QEMU does not respond"
        )
    except QmpDeadError as exc:
        return QmpEndpoint(path, "dead", _without_root(exc, pid))
    except LiveUpgradeError as exc:
        return QmpEndpoint(path, "dead", _without_root(exc, pid))
    return QmpEndpoint(path, "ok", "")


def put_questions(client: QmpClient, answers: Answers) -> None:
    deadline = time.monotonic() + TOTAL_S
    for question, (command, arguments) in _QUESTIONS.items():
        try:
            left_s = max(0.0, min(ANSWER_S, deadline - time.monotonic()))
            answers.said[question] = client.execute(command, arguments, left_s)
        except QmpCommandError as exc:
            if question not in _OPTIONAL:
                answers.problems.append(f"{command} was refused: {exc.description}")
        except QmpTimeoutError:
            answers.problems.append(f"the monitor greeted, but did not answer {command} in time")
            return
        except LiveUpgradeError as exc:
            answers.problems.append(f"the monitor failed at {command}: {exc}")
            return


def _without_root(exc: LiveUpgradeError, pid: int) -> str:
    return str(exc).replace(f"/proc/{pid}/root", "")
