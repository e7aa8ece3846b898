# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# Guests, hotplug, a module in use, unloading and loading, on a kernel that checks locks, contexts, objects and memory, and
# looks for memory that nobody knows of any more. It must have nothing to say.
leaks=/sys/kernel/debug/kmemleak

# The kernel suspects what is older than five seconds, and did not change from one look to the next.
scan() {
    sleep 6
    echo scan >$leaks || error "no search for leaks"
    sleep 1
    echo scan >$leaks || error "no search for leaks"
    cat $leaks
}

# four_vms SECONDS CPU: two on the first CPU, two on this one (-1: on any)
four_vms() {
    vmload "$NODE_1" "$1" 0xa001 0 &
    jobs_started=$!
    vmload "$NODE_2" "$1" 0xb002 0 &
    jobs_started="$jobs_started $!"
    vmload "$NODE_1" "$1" 0xa003 "$2" &
    jobs_started="$jobs_started $!"
    vmload "$NODE_2" "$1" 0xb004 "$2" &
    jobs_started="$jobs_started $!"
}

before=$(scan)
[ -z "$before" ] || echo "lost before KVM came: $before"
echo clear >$leaks
[ -z "$(complaints)" ] || echo "said before KVM came: $(complaints)"
dmesg -c >/dev/null

if [ "$CONFIG" = control ]; then
    # a kvm_thin that loses memory for each core, and takes its locks the wrong way round when its cores are listed
    load kvm_thin_faulty core_a core_b
    NODE_1=/dev/kvm-$A NODE_2=/dev/kvm-$B
else
    load_config
fi
case $CONFIG in
stock) module=kvm-$VENDOR name=kvm_$VENDOR rest=kvm ;;
*) module=core_b name=kvm_core_$B rest="kvm_core_$A kvm_thin" ;;
esac

four_vms 10 1
sleep 3
rmmod "$name" 2>/dev/null && fail "$name was unloaded under its VM"
# shellcheck disable=SC2086  # words
all_well $jobs_started
[ "$CONFIG" = stock ] || cat "$CORES"

# to any CPU: one goes and comes
four_vms 20 -1
for round in 1 2; do
    sleep 2
    echo 0 >/sys/devices/system/cpu/cpu1/online || fail "offline, round $round"
    sleep 2
    echo 1 >/sys/devices/system/cpu/cpu1/online || fail "online, round $round"
done
# shellcheck disable=SC2086  # words
all_well $jobs_started

if [ "$CONFIG" != stock ]; then
    vmload "$NODE_1" 3600 0xa001 0 & # beside all that follows
    worker=$!
fi
for round in 1 2 3 4 5; do
    rmmod "$name" || fail "rmmod, round $round"
    load "$module"
    vmload "$NODE_2" 3 0xb002 1 || fail "no VM, round $round"
done
lost=$(scan) # while the modules that lost it are there to be named
if [ "$CONFIG" != stock ]; then
    kill -0 "$worker" || fail "the VM on the other core has ended"
    kill "$worker"
    wait "$worker"
fi
# shellcheck disable=SC2086  # words
for module in $name $rest; do rmmod "$module" || fail "rmmod $module"; done
lost="$lost$(scan)"
complaint=$(complaints)
[ -z "$complaint" ] || echo "$complaint"
[ -z "$lost" ] || { echo "$lost"; fail "memory is lost"; }
# after a complaint of its own it looks no longer
grep -q 'debug_locks: *1' /proc/lockdep_stats || fail "the kernel does not check its locks any more"
pass
