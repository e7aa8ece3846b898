#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs ansible-playbook with the arguments given, and ends with a status that tells how the rollout stands:
#   rollout.sh vmm.live_upgrade.upgrade -e upgrade_build=qemu-11.1.1-0123456789abcdef
# docs/rollout.md of the collection has the table. ROLLOUT_STATUS_FILE names the status file where upgrade_report is not the default.
set -u

file=${ROLLOUT_STATUS_FILE:-build/results/upgrade.status.json}
# What an earlier job has left is no answer of this one.
rm -f "$file"
ansible-playbook "$@"
ended=$?
status=not_started
if [ -f "$file" ]; then
    status=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$file") || exit 30
    echo "rollout: $status: $(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["reason"])' "$file")"
fi
case $status in
    done | wave_done | planned) exit "$ended" ;;
    rolled_back) exit 20 ;;
    stopped) exit 21 ;;
    paused) exit 22 ;;
    waiting) exit 23 ;;
    attention) exit 24 ;;
    interrupted | running) exit 25 ;;
    not_approved) exit 26 ;;
    not_started) exit 27 ;;
    *) exit 30 ;;
esac
