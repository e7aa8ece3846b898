# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base of the rollout's action plugins: typed arguments, no connection, lines on the terminal. PRIVATE to the collection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase


class ControllerAction(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """An action that runs on the controller alone and changes nothing on any host."""

    ARGUMENT_SPEC: ClassVar[dict[str, Any]] = {}

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Validate the arguments and run; ``AnsibleError`` of the engine is worded for the operator already."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(self.ARGUMENT_SPEC)
        result.update(changed=False, failed=False)
        result.update(self.act(arguments, task_vars or {}))
        return result

    @abstractmethod
    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Do the work and return what is added to the result."""

    @property
    def is_plan(self) -> bool:
        """Whether this is a check mode run."""
        return bool(self._task.check_mode)

    def say(self, text: str) -> None:
        """Print ``text`` at once, from a worker process too."""
        self._display.display(text)
