# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A core that was built for a newer kvm_thin is refused with the reason, and disturbs nobody.
load_config
insmod /m/core_newer.ko 2>/dev/null && fail "a core for a newer kvm_thin was loaded"
dmesg | grep -q "core $NEWER was built for thin ABI 2, this kvm_thin serves 1 to 1: refused" || fail "no reason is told"
[ ! -e "/dev/kvm-$NEWER" ] || fail "its node is there"
vmload "$NODE_1" "$(span 2)" 0xa001 0 || fail "the other core does not work"
pass
