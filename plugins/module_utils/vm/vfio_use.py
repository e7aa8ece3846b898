# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the process of a VM has its VFIO devices, and whether they could follow it to another. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import VfioUse
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_kernel import (
    answer_of,
    container_can_change_process,
    iommufd_can_change_process,
    iommufd_counts_for_user,
)

GROUP = re.compile(r"/dev/vfio/((?:noiommu-)?\d+)")
CDEV = re.compile(r"/dev/vfio/devices/(vfio\d+)")
_CONTAINER, _IOMMUFD = "/dev/vfio/vfio", "/dev/iommu"
Ask = Callable[[int, int, Callable[[int], bool]], "bool | None"]


def ask_descriptor(pid: int, number: int, question: Callable[[int], bool]) -> bool | None:
    """Put ``question`` to a descriptor of another process; None when it cannot be had, or gives no answer."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        fd = syscalls.pidfd_getfd(process, number)
    except OSError:
        return None
    finally:
        os.close(process)
    return answer_of(fd, question)


def vfio_use(pid: int, links: Mapping[int, str], ask: Ask = ask_descriptor) -> VfioUse | None:
    """Return how process ``pid``, with the descriptors ``links``, has VFIO devices; None when it has none.

    The containers and the iommufd that it has open are asked, since what they can do depends on what is in them.
    """
    groups = _matching(links, GROUP)
    cdevs = _matching(links, CDEV)
    if not groups and not cdevs:
        return None
    # An iommufd without a device, as of an object that nothing uses, has nothing that could stay behind.
    asked = [(number, container_can_change_process) for number, link in links.items() if groups and link == _CONTAINER]
    asked += [(number, iommufd_can_change_process) for number, link in links.items() if cdevs and link == _IOMMUFD]
    answers = [ask(pid, number, question) for number, question in asked]
    accounts = [
        ask(pid, number, iommufd_counts_for_user) for number, link in links.items() if cdevs and link == _IOMMUFD
    ]
    return VfioUse(groups, cdevs, _all(answers), _any(accounts))


def _all(answers: list[bool | None]) -> bool | None:
    """A single no decides; a silence leaves it open."""
    if False in answers:
        return False
    return None if None in answers or not answers else True


def _any(answers: list[bool | None]) -> bool | None:
    """A single yes decides; a silence leaves it open."""
    if True in answers:
        return True
    return None if None in answers or not answers else False


def _matching(links: Mapping[int, str], pattern: re.Pattern[str]) -> list[str]:
    return sorted({match[1] for link in links.values() if (match := pattern.fullmatch(link))})
