# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The kernel notes who allocates each object, and guards and poisons them: nobody writes where it must not, and when all is
# unloaded nothing of it is left. What a module that has gone has allocated shows by code that has no name any more.
traces=/sys/kernel/debug/slab
# Who has allocated what is there. Not the stacks of threads that have ended: the kernel keeps some for the next ones. Nor the
# files in here that told of caches: Linux 6.1 looks them up to remove them and never puts them (debugfs_slab_release).
allocations() { cat $traces/kmalloc-*/alloc_traces | awk -v RS= -v ORS='\n\n' '!/copy_process|debugfs_slab_add/'; }
# code without a name: of modules that have gone, and what modules that are there ran only once
unnamed() { allocations | grep -oE '0xffffffff[0-9a-f]{8}' | sort -u; }

grep -qE '^ +[0-9]+ [a-z_]+\+0x' $traces/kmalloc-64/alloc_traces || error "the kernel does not note who allocates"
unnamed >/before
if [ "$CONFIG" = control ]; then
    # a kvm_thin that loses memory for each core
    load kvm_thin_faulty core_a core_b
    NODE_1=/dev/kvm-$A NODE_2=/dev/kvm-$B
else
    load_config
fi
case $CONFIG in
stock) module=kvm-$VENDOR name=kvm_$VENDOR rest=kvm ;;
*) module=core_b name=kvm_core_$B rest="kvm_core_$A kvm_thin" ;;
esac
vmload "$NODE_1" "$(span 10)" 0xa001 -1 &
one=$!
vmload "$NODE_2" "$(span 10)" 0xb002 -1 &
two=$!
sleep "$(span 2)"
echo 0 >/sys/devices/system/cpu/cpu1/online || fail "offline"
sleep "$(span 2)"
echo 1 >/sys/devices/system/cpu/cpu1/online || fail "online"
all_well $one $two
for round in 1 2 3; do
    rmmod "$name" || fail "rmmod, round $round"
    load "$module"
    vmload "$NODE_2" "$(span 1)" 0xb003 1 || fail "no VM, round $round"
done
# shellcheck disable=SC2086  # words
for module in $name $rest; do rmmod "$module" || fail "rmmod $module"; done
sleep 1 # what is freed after a grace period is gone then
lost=$(unnamed | grep -vxFf /before)
if [ -n "$lost" ]; then
    echo "lost memory, by code that has gone:"
    # shellcheck disable=SC2086  # the first of the words
    allocations | grep -B8 -A8 -m1 "$(set -- $lost && echo "$1")"
    fail "memory is lost"
fi
pass
