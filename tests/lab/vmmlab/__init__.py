# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: fleet hosts as emulated machines, with VMs running inside. Standard library only."""
