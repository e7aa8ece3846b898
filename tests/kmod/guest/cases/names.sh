# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# Nodes, their permissions, the default core, and the names that exist once in a kernel.
load_config
[ "$(stat -c %a /dev/kvm)" = 660 ] || fail "/dev/kvm has mode $(stat -c %a /dev/kvm)"
for build in $A $B; do
    [ "$(stat -c %a "/dev/kvm-$build")" = 660 ] || fail "the node of $build has mode $(stat -c %a "/dev/kvm-$build")"
    [ -d "/sys/kernel/debug/kvm-$build" ] || fail "$build has no folder in debugfs"
    [ -d "/sys/kernel/tracing/events/kvm_$build/kvm_exit" ] || fail "$build has no trace events"
    [ -d "/sys/kernel/tracing/events/kvmmmu_$build" ] || fail "$build has no trace events of its MMU"
done
exits() { cat "/sys/kernel/debug/kvm-$1/exits"; }
# the exits of VMs that run now
runs_on() {
    vmload /dev/kvm "$(span 3)" 0xa001 0 &
    sleep "$(span 2)"
    [ "$(exits "$1")" -gt 0 ] || fail "/dev/kvm is not $1"
    wait $! || fail "vmload on /dev/kvm"
}
runs_on "$A"
echo "$B" >"$CORES" || fail "the default cannot be chosen"
runs_on "$B"
echo nobody >"$CORES" 2>/dev/null && fail "a core that is not there is the default"
echo 1 >"/sys/kernel/tracing/events/kvm_$B/kvm_exit/enable"
vmload "/dev/kvm-$A" "$(span 1)" 0xa001 0 || fail "vmload on $A"
grep -q kvm_exit /sys/kernel/tracing/trace && fail "an event of $A is traced as one of $B"
vmload "/dev/kvm-$B" "$(span 1)" 0xa001 0 || fail "vmload on $B"
grep -q kvm_exit /sys/kernel/tracing/trace || fail "no event of $B is traced"
rmmod "kvm_core_$B" || fail "rmmod of the default core"
runs_on "$A"
pass
