# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The modules of the collection on a whole way of a host, with the kernel's own modules where modprobe looks for them.
folder=/lib/modules/$(uname -r)
mkdir -p "$folder/kernel" /run/systemd/system /etc
cp /m/kvm*.ko "$folder/kernel"
rm -f "$folder"/kernel/kvm_thin*
# shellcheck disable=SC2013  # they are words
for module in $(cat /m/base); do cp "/m/$module.ko" "$folder/kernel"; done
depmod || error "depmod"
echo "root:x:0:0::/:/bin/sh" >/etc/passwd
printf 'root:x:0:\nkvm:x:0:\n' >/etc/group
modprobe kvm_amd || error "modprobe kvm_amd"
PYTHONPATH=/py python3 -B /py/driver.py way || fail "the modules"
pass
