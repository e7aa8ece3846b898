# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A bug of KVM, with a core of a source that has it beside a core of the same source with a fix: each VM has the KVM of its
# core, and one that moves has the other from then on. CLGI in a guest with EFER.SVME clear
# has to be #UD, and with it set it is carried out on both.
grep -qw vgif /proc/cpuinfo || error "without virtual GIF the bug does not show"

# sees SVME NODE...: what the guest of one VM saw on each node, in a word each
sees() {
    said=$(vmclgi "$@") || fail "vmclgi ended with $?: $said"
    echo "$said"
    seen=$(echo "$said" | sed -n -e 's/.* executed=1000 undefined=0$/executed/p' -e 's/.* executed=0 undefined=1000$/undefined/p' | xargs)
}

# which module a VM runs on, and what it is made of
tell_cores() {
    for build in "$@"; do
        module=/sys/module/kvm_core_$build
        echo "kvm_core_$build: version $(cat "$module/version") srcversion $(cat "$module/srcversion") refcnt $(cat "$module/refcnt")"
        (cd /sys/kernel/debug && ls -d "kvm-$build"/*-*)
    done
    cat "$CORES"
}

# runs_on BUILD PID: the VM of the process is the core's, by its folder in debugfs
runs_on() {
    set -- "/sys/kernel/debug/kvm-$1/$2"-*
    [ -d "$1" ] || fail "$1 is not there"
}

case $CONFIG in
stock)
    load_config
    sees 0 /dev/kvm
    [ "$seen" = executed ] || fail "the kernel's own KVM has no such bug: $seen"
    pass
    ;;
one)
    load kvm_thin core_b
    sees 0 /dev/kvm
    [ "$seen" = undefined ] || fail "the core with the fix: $seen"
    sees 1 /dev/kvm
    [ "$seen" = executed ] || fail "the core with the fix, to a guest that may: $seen"
    pass
    ;;
control) # the core in the place of the fixed one has not the fix
    load kvm_thin core_a core_split
    B=$SPLIT
    ;;
*) load_config ;;
esac
vmload "/dev/kvm-$A" 20 0xa001 0 &
one=$!
vmload "/dev/kvm-$B" 20 0xb002 1 &
two=$!
sleep 2
tell_cores "$A" "$B"
runs_on "$A" $one
runs_on "$B" $two
all_well $one $two
sees 1 "/dev/kvm-$A" "/dev/kvm-$B" "/dev/kvm-$A"
[ "$seen" = "executed executed executed" ] || fail "a VM that may and was moved: $seen"
sees 0 "/dev/kvm-$A" "/dev/kvm-$B" "/dev/kvm-$A"
[ "$seen" = "executed undefined executed" ] || fail "a VM moved from $A to $B and back saw: $seen"
pass
