# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# What cannot be is refused: SEV, kvm_thin beside the kernel's own KVM, and that beside kvm_thin.
load kvm_thin
if [ "$VENDOR" = amd ]; then
    insmod /m/core_a.ko sev=1 2>/dev/null && fail "a core was loaded with sev=1"
    dmesg | grep -q "a core has no SEV, SEV-ES and SEV-SNP" || fail "no reason is told"
fi
load core_a
insmod /m/kvm.ko 2>/dev/null && fail "kvm was loaded beside kvm_thin"
vmload "/dev/kvm-$A" "$(span 2)" 0xa001 0 || fail "the core does not work after that"
rmmod "kvm_core_$A" || fail "rmmod of the core"
rmmod kvm_thin || fail "rmmod of kvm_thin"
load kvm "kvm-$VENDOR"
insmod /m/kvm_thin.ko 2>/dev/null && fail "kvm_thin was loaded beside kvm"
vmload /dev/kvm "$(span 2)" 0xa001 0 || fail "the kernel's KVM does not work after that"
pass
