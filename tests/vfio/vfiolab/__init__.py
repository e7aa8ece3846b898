# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine of the passthrough tests, what runs on it, and the judgement of what came of it."""
