#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the lab: ``python3 tests/lab/lab.py up|status|ssh|verify|inventory|down``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vmmlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
