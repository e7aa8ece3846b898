# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# As guests, with the kvm_thin that compares its caches with the hardware on every use, and warns.
load kvm_thin_debug core_a core_b
vmload "/dev/kvm-$A" "$(span 8)" 0xa001 0 &
one=$!
vmload "/dev/kvm-$B" "$(span 8)" 0xb002 0 &
all_well $one $!
pass
