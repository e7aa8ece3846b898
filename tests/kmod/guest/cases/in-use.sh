# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A core with a VM cannot be unloaded, one without can, and the VM does not notice.
load_config
case $CONFIG in
stock) used=kvm_$VENDOR ;;
*) used=kvm_core_$A ;;
esac
vmload "$NODE_1" "$(span 6)" 0xa001 0 &
worker=$!
sleep "$(span 1)"
rmmod "$used" 2>/dev/null && fail "$used was unloaded under its VM"
if [ "$CONFIG" = two ]; then
    grep -q "^$A vms=1 enabled=1 default=1" "$CORES" || fail "kvm_thin counts other VMs: $(cat "$CORES")"
    rmmod "kvm_core_$B" || fail "the idle core cannot be unloaded"
    [ ! -e "/dev/kvm-$B" ] || fail "its node is left"
fi
all_well $worker
rmmod "$used" || fail "$used cannot be unloaded when its VM has ended"
pass
