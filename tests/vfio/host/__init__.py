# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on the emulated host of the passthrough tests: Python's standard library and the collection's ``module_utils``."""
