# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A hundred times unloaded and loaded again, with another core at work in configuration two. No memory may be lost.
load_config
case $CONFIG in
stock) module=kvm-$VENDOR name=kvm_$VENDOR ;;
one) module=core_a name=kvm_core_$A ;;
two)
    module=core_b name=kvm_core_$B
    # for longer than it takes; ended below
    vmload "$NODE_1" 3600 0xa001 0 &
    worker=$!
    ;;
esac
memory_kb() { awk '/^(Slab|Percpu|VmallocUsed):/ { sum += $2 } END { print sum }' /proc/meminfo; }
# hundredths of a second since the boot, into the variable $1; without a process, which would be timed, too
clock() {
    read -r uptime _ </proc/uptime
    eval "$1=${uptime%.*}${uptime#*.}"
}
round=1 unloading=0 loading=0
while [ $round -le 100 ]; do
    clock began
    rmmod "$name" || fail "rmmod, round $round"
    clock unloaded
    insmod "/m/$module.ko" || fail "insmod, round $round"
    clock loaded
    # shellcheck disable=SC2154  # set by clock
    unloading=$((unloading + unloaded - began)) loading=$((loading + loaded - unloaded))
    [ $((round % 10)) != 0 ] || vmload "$NODE_2" 2 0xb002 "$LAST_CPU" || fail "no VM, round $round"
    # what is made once only has been made by then
    [ $round != 20 ] || before=$(memory_kb)
    round=$((round + 1))
done
after=$(memory_kb)
# hundredths of a second in a hundred rounds are so many ten thousandths a round
echo "FIGURE: $name unloaded in $((unloading / 10)) ms, loaded in $((loading / 10)) ms, mean of 100 rounds"
echo "memory of the kernel after 20 rounds $before kB, after 100 rounds $after kB"
[ $((after - before)) -lt 4096 ] || fail "$((after - before)) kB are lost"
if [ "$CONFIG" = two ]; then
    kill -0 "$worker" || fail "the VM on the other core has ended"
    kill "$worker"
fi
pass
