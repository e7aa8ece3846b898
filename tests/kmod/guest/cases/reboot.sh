# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The machine reboots while VMs run on both CPUs. That it is reset is seen from outside.
load_config
ready_with_vms
reboot -f
sleep 60
fail "no reboot"
