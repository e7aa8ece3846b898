# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM's part of a kernel source. PRIVATE to the collection."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

# KVM with the headers that are its own. All others are those of the kernel that it is built for.
KVM_PARTS = (
    "arch/x86/kvm",
    "virt/kvm",
    "include/kvm",
    "include/linux/kvm*.h",
    "include/uapi/linux/kvm*.h",
    "include/trace/events/kvm.h",
    "arch/x86/include/asm/kvm*.h",
    "arch/x86/include/asm/svm.h",
    "arch/x86/include/asm/vmx*.h",
    "arch/x86/include/uapi/asm/kvm*.h",
    "arch/x86/include/uapi/asm/svm.h",
    "arch/x86/include/uapi/asm/vmx.h",
)


def extract(tarball: Path, target: Path) -> str:
    """Unpack KVM's part of ``tarball`` into the empty folder ``target``; return the version of the kernel.

    Raises ``LiveUpgradeError``.
    """
    top = tarball.name.split(".tar")[0]
    command = [
        *("tar", "-C", str(target), "--no-same-owner", "--strip-components=1"),
        *("--wildcards", "--no-wildcards-match-slash", "-xf", str(tarball)),
        *(f"{top}/{part}" for part in (*KVM_PARTS, "Makefile")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise LiveUpgradeError(f"{tarball} is not a kernel source with {top}/ in it: {said}")
    return _version((target / "Makefile").read_text(encoding="utf-8"))


def source_version(tarball: Path) -> str:
    """Return the version of the kernel in ``tarball``, of which no more is read than it takes. Raises ``LiveUpgradeError``."""
    top = tarball.name.split(".tar")[0]
    command = ["tar", "--occurrence=1", "--to-stdout", "-xf", str(tarball), f"{top}/Makefile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise LiveUpgradeError(f"{tarball} is not a kernel source with {top}/ in it: {said}")
    return _version(done.stdout)


def _version(makefile: str) -> str:
    found = [re.search(rf"^{name} = (\d+)$", makefile, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    numbers = [match[1] for match in found if match]
    if len(numbers) != 3:
        raise LiveUpgradeError("the Makefile of the source is not a kernel's: it names no version")
    return ".".join(numbers)
