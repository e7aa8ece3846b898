# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# A kernel that insists on signatures, and knows the key of one build: that is loaded, one without and one by somebody else are not.
furnish
modprobe kvm_amd || error "modprobe kvm_amd"
PYTHONPATH=/py python3 -B /py/driver.py signed || fail "the modules"
pass
