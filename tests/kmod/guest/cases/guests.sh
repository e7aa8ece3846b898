# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# Two VMs on each CPU, all with values of their own in an MSR that is restored only when the CPU returns to user mode.
if [ "$CONFIG" = control ]; then
    # core_split remembers by itself what the MSR holds: the control that has to go wrong
    load kvm_thin core_a core_split
    NODE_1=/dev/kvm-$A NODE_2=/dev/kvm-$SPLIT
    time=$(span 40) # until it has gone wrong
else
    load_config
    time=$(span 10)
fi
jobs_started=
for cpu in $(seq 0 "$LAST_CPU"); do
    vmload "$NODE_1" "$time" "0xa00$cpu" "$cpu" &
    jobs_started="$jobs_started $!"
    vmload "$NODE_2" "$time" "0xb00$cpu" "$cpu" &
    jobs_started="$jobs_started $!"
done
# shellcheck disable=SC2086  # words
all_well $jobs_started
pass
