# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated host of the KVM tests: modules built for it, its initial root, the machine, and the table of what is run."""
