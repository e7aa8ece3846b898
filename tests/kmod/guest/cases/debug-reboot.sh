# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# As reboot, with a kernel that checks itself.
# shellcheck disable=SC1091  # it is on the emulated host
. /cases/reboot.sh
