# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests with a guest that is at work."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import HOST_ADDRESS
from ansible_collections.vmm.live_upgrade.tests.integration.load.namespace import TapNamespace


@pytest.fixture
def namespace() -> Iterator[TapNamespace]:
    """A network namespace of the test's own, with a tap."""
    made = TapNamespace(f"vmm-load-{os.getpid()}", HOST_ADDRESS)
    yield made
    made.close()
