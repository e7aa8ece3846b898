# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the cases of ``/plan.json`` one after the other, as far as they can on one VM, and writes a line of JSON for each."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path
from typing import Any

from host import iommu, kvm
from host.acts import ACTS
from host.measure import Measure
from host.prepare import bind_all, say, start_peer
from host.vm import Spec, Vm, last_words
from vfiolab.cases import BAD, CASES, OLD, Case
from vfiolab.devices import BY_NAME, Device


def main() -> None:
    plan = json.loads(Path("/plan.json").read_text())
    devices = tuple(BY_NAME[name] for name in plan["devices"])
    addresses = bind_all(devices)
    start_peer(devices)
    iommu.start()
    host = Host(devices, addresses, plan["backend"])
    cases = [case for case in CASES[plan["suite"]] if case.name in plan["cases"]]
    for case in cases:
        host.run(case, tuple(plan["arguments"].get(case.name, case.arguments)))
    host.close()


class Host:
    """Has one VM at a time."""

    def __init__(self, devices: tuple[Device, ...], addresses: dict[str, str], backend: str) -> None:
        self._devices = devices
        self._addresses = addresses
        self._backend = backend
        self._vm: Vm | None = None

    def run(self, case: Case, arguments: tuple[str, ...]) -> None:
        began_s = time.monotonic()
        try:
            vm = self._vm_for(case)
        except Exception as error:  # whatever it is, it is told, and the next case is run
            say(traceback.format_exc())
            why = str(error).partition("\n")[0]
            _tell({"case": case.name, "complaint": f"no VM: {why}", "seconds": 0, "vm_alive": False, "devices": {}})
            self.close()
            return
        measure = Measure(vm)
        try:
            complaint = ACTS[case.act](vm, case.to, *arguments)
        except Exception as error:  # whatever it is, it is told, and the next case is run
            say(traceback.format_exc())
            complaint = f"{type(error).__name__}: {error}"
        facts = measure.finish()
        seconds = round(time.monotonic() - began_s, 1)
        _tell({"case": case.name, "complaint": complaint, "seconds": seconds, **facts})
        say(f"{case.name}: {complaint or 'done'} ({seconds} s)")
        if complaint or not facts["vm_alive"]:
            say(f"{vm.state()}\n{last_words()}")
        elif any(told[word] for told in facts["devices"].values() for word in BAD):
            say(last_words())
        if not facts["vm_alive"]:
            self.close()

    def close(self) -> None:
        if self._vm:
            self._vm.close()
            self._vm = None

    def _vm_for(self, case: Case) -> Vm:
        """The VM that there is, when it is one for the case, else another."""
        there = {device.name: device for device in self._devices}
        devices = tuple(there[name] for name in case.devices or there)
        vm = self._vm
        spec = Spec(devices, self._addresses, self._backend, case.plugged, case.properties, case.way, case.late)
        if vm and (case.on in ("", vm.build)) and vm.spec == spec and bool(vm.core) == case.cores:
            return vm
        self.close()
        (kvm.have_cores if case.cores else kvm.have_own)()
        began_s = time.monotonic()
        before = iommu.maps()
        self._vm = vm = Vm(spec, case.on or OLD, "A" if case.cores else "")
        vm.await_up()
        mapped = iommu.maps()[0] - before[0]
        say(f"the VM is up after {time.monotonic() - began_s:.1f} s, {mapped} DMA maps, {vm.pinned_kib()} KiB pinned")
        if not mapped or not vm.pinned_kib():
            raise RuntimeError("a VM with devices that maps and pins nothing: whoever counts that is blind")
        return vm


def _tell(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
