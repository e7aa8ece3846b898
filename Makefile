# SPDX-License-Identifier: GPL-3.0-or-later
# Front door of the checkout; what the targets do is in tests/tools/.

HOSTS ?= 3
VMS ?= 2
HOST ?= h1
ROUNDS ?= 20
HOPS ?= 200

PYTHON := .venv/bin/python
RUN := $(PYTHON) tests/tools/run_tests.py
LAB := $(PYTHON) tests/lab/lab.py
# .venv is a link that is laid anew only when the pinned requirements change; `setup` itself is instant when all is there.
SETUP := @tests/tools/bootstrap.sh --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit sanity integration lab-test molecule build-qemu collection \
        bench-downtime soak-vfork test-kmod test-lab-trouble test-kvm-fleet test-kvm-host test-eda test-vfio fault-table bench-fleet lab-up lab-status lab-ssh lab-down clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "%-42s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Debian packages and Python environments this needs (root or sudo)
	@tests/tools/bootstrap.sh

demo:  ## two QEMU builds, a lab fleet, a rollout over it, a roll-back
	$(SETUP)
	@$(PYTHON) tests/tools/demo.py

test:  ## everything below, with a table at the end
	$(SETUP)
	@$(RUN)

lint unit sanity integration molecule:  ## one part of the tests
	$(SETUP)
	@$(RUN) $@

lab-test:  ## the tests that need the lab
	$(SETUP)
	@$(RUN) lab

bench-downtime: build-qemu  ## how long a guest stands still, mechanism by mechanism: ROUNDS=20
	@$(PYTHON) tests/tools/builds.py --stock
	@$(PYTHON) tests/bench/downtime.py $(ROUNDS)

soak-vfork: build-qemu  ## upgrades back and forth on one VM under load: HOPS=200
	@$(PYTHON) tests/bench/soak_vfork.py $(HOPS)

test-kmod: build-qemu  ## two builds of KVM at once in an emulated host, case by case (as root): SERIES=6.1
	@for series in $(or $(SERIES),6.12 6.1); do $(PYTHON) tests/kmod/run.py --series $$series || exit; done
	@$(PYTHON) tests/kmod/hardware.py rehearse

test-lab-trouble:  ## hosts that are not well in a rollout over the lab: a full disk, a QEMU that hangs, a build that is gone
	$(SETUP)
	@$(RUN) lab-trouble

test-kvm-fleet:  ## rollouts of a KVM core with a QEMU over a lab of three hosts, some twenty minutes (as root)
	$(SETUP)
	@$(RUN) kvm-fleet

test-kvm-host:  ## KVM cores on a lab host of their own: boots, resets, a fixed bug, some twenty minutes (as root)
	$(SETUP)
	@$(RUN) kvm-host

test-eda:  ## the rulebook by ansible-rulebook, waves by ansible-runner; needs a Java runtime
	$(SETUP)
	@$(RUN) eda

test-vfio: build-qemu  ## VMs with passed-through devices upgraded in an emulated host, case by case (as root)
	@$(PYTHON) tests/tools/builds.py --stock
	@$(PYTHON) tests/vfio/run.py

fault-table: build-qemu  ## every fault that can be injected into an upgrade, and what came of it
	@$(PYTHON) tests/bench/fault_table.py

bench-fleet:  ## how often the gate stops bad builds, and what a rollout costs the controller: FLEETS=200x5
	$(SETUP)
	@$(PYTHON) tests/bench/fleet_gate.py
	@$(PYTHON) tests/bench/fleet_scale.py $(FLEETS)

build-qemu:  ## the QEMU artifacts of the lab, by playbooks/build.yml
	$(SETUP)
	@$(PYTHON) tests/tools/builds.py

collection:  ## the tarball, in build/dist
	$(SETUP)
	@$(PYTHON) tests/tools/collection.py

lab-up: build-qemu  ## a fleet: HOSTS=3 VMS=2
	@$(LAB) up --hosts $(HOSTS) --vms $(VMS)

lab-status:  ## its hosts and VMs
	@$(LAB) status

lab-ssh:  ## a shell on a host of it: HOST=h1
	@$(LAB) ssh $(HOST)

lab-down:  ## end it
	@$(LAB) down

clean:  ## remove what was made in the checkout (not the cache in ~/.cache/vmm-live-upgrade)
	@if [ -x $(PYTHON) ]; then for lab in build/lab/*/; do [ ! -d "$$lab" ] || $(LAB) --state "$$lab" down; done; fi
	@rm -rf build .venv .venv-next .venv-eda .ansible .mypy_cache .ruff_cache
