# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# As guests, with a core of the release of Linux that came before, and one of this release with fixes: what an upgrade is.
load kvm_thin core_older core_b
jobs_started=
for cpu in $(seq 0 "$LAST_CPU"); do
    vmload "/dev/kvm-$OLDER" "$(span 10)" "0xa00$cpu" "$cpu" &
    jobs_started="$jobs_started $!"
    vmload "/dev/kvm-$B" "$(span 10)" "0xb00$cpu" "$cpu" &
    jobs_started="$jobs_started $!"
done
# shellcheck disable=SC2086  # words
all_well $jobs_started
rmmod "kvm_core_$OLDER" || fail "the core of the older release cannot be unloaded"
vmload "/dev/kvm-$B" "$(span 2)" 0xb005 0 || fail "the other core does not work after that"
pass
