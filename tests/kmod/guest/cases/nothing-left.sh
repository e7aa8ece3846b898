# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# When the last core has gone, virtualization is off on each CPU; when kvm_thin has, nothing of it is left.
load_config
# eight digits of the low half, then eight of the high one
msr() { dd if="/dev/cpu/$1/msr" bs=8 count=1 iflag=skip_bytes skip=$(($2)) 2>/dev/null | hexdump -v -e '1/4 "%08x"'; }
svme() { echo $((0x$(msr "$1" 0xc0000080 | cut -c1-8) >> 12 & 1)); }
hsave() { msr "$1" 0xc0010117; }
none=0000000000000000
# what the hardware says is to be read on AMD only; on both, the kernel's own KVM refuses hardware that is on
hardware_is() {
    [ "$VENDOR" = amd ] || return 0
    for cpu in 0 1; do
        if [ "$1" = on ]; then
            [ "$(svme $cpu)" = 1 ] || fail "EFER.SVME of CPU $cpu is not set with cores loaded"
            [ "$(hsave $cpu)" != $none ] || fail "VM_HSAVE_PA of CPU $cpu is not set with cores loaded"
        else
            [ "$(svme $cpu)" = 0 ] || fail "EFER.SVME of CPU $cpu is still set"
            [ "$(hsave $cpu)" = $none ] || fail "VM_HSAVE_PA of CPU $cpu is still set"
        fi
    done
}
vmload "$NODE_1" "$(span 2)" 0xa001 0 || fail "vmload"
hardware_is on
rmmod "kvm_core_$A" || fail "rmmod of $A"
if [ "$CONFIG" = two ]; then
    hardware_is on
    rmmod "kvm_core_$B" || fail "rmmod of $B"
fi
hardware_is off
dd if=/dev/kvm of=/dev/null count=0 2>/dev/null && fail "/dev/kvm opens without a core"
rmmod kvm_thin || fail "rmmod of kvm_thin"
# (links to a cache that was merged with another are left by the kernel, with its own KVM too)
left=$(
    ls -d /dev/kvm* /sys/kernel/debug/kvm* /sys/kernel/tracing/events/kvm_"$A" 2>/dev/null
    find /sys/kernel/slab -type d -name "*$A*"
)
[ -z "$left" ] || fail "left: $left"
load kvm "kvm-$VENDOR"
vmload /dev/kvm "$(span 2)" 0xa001 0 || fail "the kernel's own KVM does not work after that"
pass
