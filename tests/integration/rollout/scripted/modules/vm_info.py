#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host. What the real one tells of VMs is tested on real QEMU."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Find no VM."""
    module = AnsibleModule(argument_spec={"state_dir": {"type": "path"}}, supports_check_mode=True)
    module.exit_json(changed=False, vms=[], default_build_id=None)


if __name__ == "__main__":
    main()
