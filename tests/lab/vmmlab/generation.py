# SPDX-License-Identifier: GPL-3.0-or-later
"""The generations of kernels that the lab knows, and which Debian has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """``release``: what releases of its kernels look like before the flavour, in a pattern.

    ``modules``: where its image packages have their modules, above the folder of the release.
    """

    series: str
    suite: str
    release: str
    modules: str


DEFAULT = Generation("6.12", "trixie", r"6\.12\.[0-9.]+\+deb13(\.[0-9]+)?", "usr/lib/modules")
GENERATIONS = {
    generation.series: generation
    for generation in (DEFAULT, Generation("6.1", "bookworm", r"6\.1\.0-[0-9]+", "lib/modules"))
}
