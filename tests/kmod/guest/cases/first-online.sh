# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A CPU comes online for the first time when KVM runs already: what its MSRs have to be for the host is read then.
if [ "$CONFIG" = control ]; then
    # a kvm_thin that reads the host's values only when an MSR is added
    load kvm_thin_unsampled core_a core_b
    NODE_1=/dev/kvm-$A NODE_2=/dev/kvm-$B
else
    load_config
fi
[ "$(cat /sys/devices/system/cpu/online)" = 0 ] || error "CPU 1 has been online"
vmload "$NODE_1" 2 0xa001 0 || fail "before, on CPU 0"
echo 1 >/sys/devices/system/cpu/cpu1/online || fail "CPU 1 does not come online"
vmload "$NODE_1" 4 0xa002 1 &
one=$!
vmload "$NODE_2" 4 0xb003 1 &
all_well $one $!
pass
