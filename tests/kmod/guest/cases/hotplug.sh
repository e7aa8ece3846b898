# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A CPU goes and comes while VMs run.
load_config
online=/sys/devices/system/cpu/cpu1/online
vmload "$NODE_1" 20 0xa001 -1 &
one=$!
vmload "$NODE_2" 20 0xb002 -1 &
two=$!
for round in 1 2 3 4 5; do
    sleep 1
    echo 0 >$online || fail "offline, round $round"
    sleep 1
    echo 1 >$online || fail "online, round $round"
done
all_well $one $two
vmload "$NODE_1" 3 0xa003 1 &
one=$!
vmload "$NODE_2" 3 0xb004 1 &
all_well $one $!
pass
