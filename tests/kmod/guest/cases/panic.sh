# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The kernel panics while VMs run on both CPUs. That the machine is reset then is seen from outside.
load_config
vmload "$NODE_1" "$(span 60)" 0xa001 0 &
vmload "$NODE_2" "$(span 60)" 0xb002 0 &
vmload "$NODE_1" "$(span 60)" 0xa003 "$LAST_CPU" &
vmload "$NODE_2" "$(span 60)" 0xb004 "$LAST_CPU" &
sleep "$(span 3)"
dmesg | grep -E 'WARNING:|BUG:|Oops' && fail "the kernel complains"
echo "KMOD: ready"
echo c >/proc/sysrq-trigger
sleep 60
fail "no panic"
