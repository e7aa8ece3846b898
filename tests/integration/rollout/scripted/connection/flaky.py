# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A local connection that breaks: each byte in the file ``cuts`` is one contact of ``vm_upgrade`` that is lost."""

from __future__ import annotations

import os

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as LocalConnection

DOCUMENTATION = """
name: flaky
short_description: local, but breaks when the test says so
description: For tests.
author: vmm.live_upgrade contributors
version_added: 0.1.0
options:
  cuts:
    description: A file; contacts break, one for each of its bytes.
    vars:
      - name: flaky_cuts
extends_documentation_fragment:
  - connection_pipelining
"""


class Connection(LocalConnection):
    """See above."""

    transport = "vmm.live_upgrade.flaky"

    def exec_command(self, cmd, in_data=None, sudoable=True):
        """Run it locally unless the contact is to break now."""
        cuts = self.get_option("cuts")
        if cuts and "vm_upgrade" in cmd and "AnsiballZ" in cmd and "chmod" not in cmd and os.path.exists(cuts):
            left = os.path.getsize(cuts)
            if left:
                os.truncate(cuts, left - 1)
                raise AnsibleConnectionFailure("scripted cut")
        return super().exec_command(cmd, in_data, sudoable)

    def reset(self):
        """Nothing is kept open."""
