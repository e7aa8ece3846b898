# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# When the last core has gone, virtualization is off on each CPU; when kvm_thin has, nothing of it is left.
load_config
msr() { dd if="/dev/cpu/$1/msr" bs=8 count=1 iflag=skip_bytes skip=$(($2)) 2>/dev/null | hexdump -e '1/8 "%x"'; }
svme() { echo $((0x$(msr "$1" 0xc0000080) >> 12 & 1)); }
hsave() { msr "$1" 0xc0010117; }
vmload "$NODE_1" 2 0xa001 0 || fail "vmload"
for cpu in 0 1; do
    [ "$(svme $cpu)" = 1 ] || fail "EFER.SVME of CPU $cpu is not set with cores loaded"
    [ "$(hsave $cpu)" != 0 ] || fail "VM_HSAVE_PA of CPU $cpu is not set with cores loaded"
done
rmmod "kvm_core_$A" || fail "rmmod of $A"
if [ "$CONFIG" = two ]; then
    [ "$(svme 1)" = 1 ] || fail "EFER.SVME is gone with the first core"
    rmmod "kvm_core_$B" || fail "rmmod of $B"
fi
for cpu in 0 1; do
    [ "$(svme $cpu)" = 0 ] || fail "EFER.SVME of CPU $cpu is still set"
    [ "$(hsave $cpu)" = 0 ] || fail "VM_HSAVE_PA of CPU $cpu is still set"
done
dd if=/dev/kvm of=/dev/null count=0 2>/dev/null && fail "/dev/kvm opens without a core"
rmmod kvm_thin || fail "rmmod of kvm_thin"
left=$(ls -d /dev/kvm* /sys/kernel/debug/kvm* /sys/kernel/tracing/events/kvm_"$A" /sys/kernel/slab/*"$A"* 2>/dev/null)
[ -z "$left" ] || fail "left: $left"
load kvm kvm-amd
vmload /dev/kvm 2 0xa001 0 || fail "the kernel's own KVM does not work after that"
pass
