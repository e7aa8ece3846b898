# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# The modules of the collection on a whole way of a host.
furnish
modprobe kvm_amd || error "modprobe kvm_amd"
PYTHONPATH=/py python3 -B /py/driver.py way || fail "the modules"
pass
