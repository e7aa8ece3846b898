# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The kernel panics while VMs run on both CPUs. That the machine is reset then is seen from outside.
load_config
ready_with_vms
echo c >/proc/sysrq-trigger
sleep 60
fail "no panic"
