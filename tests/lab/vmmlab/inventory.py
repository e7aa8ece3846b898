# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as an Ansible inventory."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .host import Host


def inventory_yaml(hosts: list[Host]) -> str:
    """YAML text with all hosts in group ``hypervisors``."""
    variables = {host.name: _variables(host) for host in hosts}
    tree = {"all": {"children": {"hypervisors": {"hosts": variables}}}}
    return "# Written by the lab; gone with it.\n" + "\n".join(_lines(tree, "")) + "\n"


def _variables(host: Host) -> dict[str, Any]:
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": host.access.port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(host.access.key),
        "ansible_ssh_args": shlex.join(host.access.options()),
        "ansible_python_interpreter": "/usr/bin/python3",
        "rack": host.rack,
        "upgrade_downtime_budget_ms": host.pace.pause_ms,
        "rollback_downtime_budget_ms": host.pace.pause_ms,
        "vm_probes": {vm.name: vm.probes() for vm in host.vms},
    }


def _lines(tree: dict[str, Any], indent: str) -> list[str]:
    """Block mappings; what is no mapping is written as JSON, which YAML reads too."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}")
    return lines
