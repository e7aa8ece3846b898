# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripted fleet of the tests of rollouts, for the examples."""

from ansible_collections.vmm.live_upgrade.tests.integration.rollout.conftest import fleet

__all__ = ["fleet"]
