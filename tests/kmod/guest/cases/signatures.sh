# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A kernel that insists on signatures gets no build without, and is told before it would refuse.
PYTHONPATH=/py python3 -B /py/driver.py signatures || fail "the modules"
pass
