# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the KVM modules on the emulated host, as a playbook would, and looks at the kernel after each."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.testing import patch_module_args

PLUGINS = "ansible_collections.vmm.live_upgrade.plugins.modules"
STATE = Path("/var/lib/vmm-live-upgrade")
# Names of the cores: the last one is not on every machine.
A, B, NEWER = (os.environ.get(name, "") for name in ("A", "B", "NEWER"))
STORE = STATE / "kvm" / os.uname().release
Result = dict[str, Any]


def main() -> None:
    {"way": whole_way, "signatures": signatures, "signed": signed}[sys.argv[1]]()


def whole_way() -> None:
    build_a, build_b = stage()
    refuse_beside_vms(build_a)
    take_back_failed_load(build_b)
    load(build_a, build_b)
    tell_users(build_b)
    refuse_newer()
    unload(build_a, build_b)


def signatures() -> None:
    """On a kernel that is locked down, which is seen only where securityfs is mounted, and has module.sig_enforce."""
    artifact = artifact_of("A")
    refused(
        run("kvm_stage", artifact=artifact), "its modules are not signed and the kernel runs with module.sig_enforce"
    )
    subprocess.run(["mount", "-t", "securityfs", "security", "/sys/kernel/security"], check=True)
    refused(run("kvm_stage", artifact=artifact), "its modules are not signed and the kernel is locked down (integrity)")
    say(not STORE.exists(), "nothing is staged")
    done = subprocess.run(["insmod", "/m/kvm_thin.ko"], check=False)
    say(done.returncode != 0, "the kernel itself refuses such a module")


def signed() -> None:
    """On a kernel with module.sig_enforce, which knows who signed A and has never heard of who signed B."""
    unknown = "the kernel does not know the key that it is signed with"
    foreign = str(expect(run("kvm_stage", artifact=artifact_of("B")), changed=True)["build_id"])
    refused(run("kvm_core", build_id=foreign), unknown)
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "the kernel's own KVM is back")
    build = str(expect(run("kvm_stage", artifact=artifact_of("A")), changed=True)["build_id"])
    with changed_modules(build, signed_by="", change=without_signature):
        refused(
            run("kvm_core", build_id=build), "its modules are not signed and the kernel runs with module.sig_enforce"
        )
        done = subprocess.run(["insmod", str(STORE / build / "kvm_thin.ko")], check=False)
        say(done.returncode != 0, "the kernel itself refuses such a module")
    with changed_modules(build, change=lambda data: data.replace(b"kvm_thin: ", b"kvm_fat:  ")):
        refused(run("kvm_core", build_id=build), "or it is not what was signed")
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "the kernel's own KVM is there all the time")
    expect(run("kvm_core", build_id=build), changed=True)
    say(loaded("kvm_thin") and loaded(f"kvm_core_{A}"), "what is signed with a key that the kernel knows is loaded")
    with vm(f"/dev/kvm-{A}", seconds=5):
        pass
    expect(run("kvm_core", build_id=build, state="absent", deadline_s=60), changed=True)
    say(not loaded("kvm_thin"), "and unloaded")


@contextlib.contextmanager
def changed_modules(build: str, change: Callable[[bytes], bytes], names: str = "*.ko", **facts: str) -> Iterator[None]:
    """Have other modules of these names in a staged build, and a manifest that knows of no change."""
    folder = STORE / build
    good = {path: path.read_bytes() for path in (*folder.glob(names), folder / "manifest.json")}
    manifest = {**json.loads(good[folder / "manifest.json"]), **facts}
    for path in folder.glob(names):
        path.write_bytes(change(good[path]))
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    yield
    for path, data in good.items():
        path.write_bytes(data)


def without_signature(module: bytes) -> bytes:
    """At the end is: the signature, eight bytes, its length, and a mark."""
    mark = b"~Module signature appended~\n"
    rest = module.removesuffix(mark)
    say(rest != module, "it is signed")
    return rest[: -12 - int.from_bytes(rest[-4:], "big")]


def stage() -> tuple[str, str]:
    found: list[str] = []
    for name in ("A", "B"):
        artifact = artifact_of(name)
        expect(run("kvm_stage", check=True, artifact=artifact), changed=True)
        say(not STORE.exists() or len(list(STORE.iterdir())) <= len(found) + 1, "check mode stages nothing")
        result = expect(run("kvm_stage", artifact=artifact), changed=True)
        expect(run("kvm_stage", artifact=artifact), changed=False)
        found.append(str(result["build_id"]))
    with open(STORE / "changed.tar.gz", "wb") as changed:
        changed.write(Path(artifact).read_bytes() + b"\0")
    digest = Path(f"{artifact}.sha256").read_text().split()[0]
    refused(run("kvm_stage", artifact=changed.name, sha256=digest), "its SHA-256 is")
    os.unlink(changed.name)
    return found[0], found[1]


def refuse_beside_vms(build: str) -> None:
    with vm("/dev/kvm") as pid:
        refused(run("kvm_core", build_id=build), f"kernel's own KVM is in use by process {pid}")
        info = run("kvm_info")
        expect(run("kvm_core", build_id=build, persist=True, load=False), changed=True)
        say(run("kvm_info")["boot"] == [build], "the next boot is chosen beside running VMs")
        expect(run("kvm_core", build_id=build, state="absent"), changed=True)
        refused(run("kvm_core", build_id=build, load=False), "nothing would be done")
        say(info["stock"] == {"loaded": True, "users": [{"pid": pid, "vm": None}]}, f"{info['stock']} tells the user")
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "the kernel's own KVM stays")


def take_back_failed_load(build: str) -> None:
    """A core that the kernel refuses: a changed one whose manifest has been changed with it."""
    with changed_modules(build, change=lambda data: b"\x7fELF" + bytes(100) + data[104:], names=f"kvm_core_{B}.ko"):
        refused(run("kvm_core", build_id=build), "KVM is as it was before")
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "a failed load brings the kernel's own KVM back")


def load(build_a: str, build_b: str) -> None:
    predicted = expect(run("kvm_core", check=True, build_id=build_a), changed=True)
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "check mode loads nothing")
    began_s = time.monotonic()
    done = expect(run("kvm_core", build_id=build_a), changed=True)
    print(f"loading thin and a core in place of the kernel's own KVM: {time.monotonic() - began_s:.2f} s")
    say(done["actions"] == predicted["actions"] and done["diff"] == predicted["diff"], "check mode tells the truth")
    say(loaded("kvm_thin") and not loaded("kvm_amd"), "thin in place of the kernel's own KVM")
    expect(run("kvm_core", build_id=build_a), changed=False)
    expect(run("kvm_core", build_id=build_b), changed=True)
    say(run("kvm_info")["thin"]["abi"] == 1, "the ABI of thin is known by the store")
    say(default() == A, "the first core is the default")
    expect(run("kvm_core", build_id=build_b, state="default", persist=True), changed=True)
    say(default() == B, "the other core is the default")
    expect(run("kvm_core", build_id=build_b, state="default", persist=True), changed=False)
    subprocess.run(["sh", "-n", "/usr/local/lib/vmm-live-upgrade/load-kvm-cores"], check=True)


def tell_users(build_b: str) -> None:
    with vm("/dev/kvm") as on_b, vm(f"/dev/kvm-{A}") as on_a:
        # whose VM was made by way of /dev/kvm stays known after the default has changed
        refused(run("kvm_core", build_id=build_b, state="absent", deadline_s=0), "make another the default first")
        Path("/sys/module/kvm_thin/parameters/cores").write_text(A)
        users = {core["name"]: [user["pid"] for user in core["users"]] for core in run("kvm_info")["cores"]}
        say(users == {A: [on_a], B: [on_b]}, f"{users} tells who is on which core")
        refused(
            run("kvm_core", build_id=build_b, state="absent", deadline_s=1), f"still in use after 1 s by process {on_b}"
        )
        Path("/sys/module/kvm_thin/parameters/cores").write_text(B)


def refuse_newer() -> None:
    artifact = artifact_of("NEWER")
    refused(run("kvm_stage", artifact=artifact), "it needs kvm_thin ABI 2, the one that runs serves up to 1")
    say(not any(NEWER in path.name for path in STORE.iterdir()), "a refused build is not staged")


def unload(build_a: str, build_b: str) -> None:
    expect(run("kvm_core", build_id=build_a, state="default"), changed=True)
    with vm(f"/dev/kvm-{B}", seconds=4):
        refused(run("kvm_stage", state="absent", build_id=build_b), "is loaded")
        began_s = time.monotonic()
        expect(run("kvm_core", build_id=build_b, state="absent", deadline_s=120), changed=True)
        print(f"a core is gone with its last VM, waited for {time.monotonic() - began_s:.2f} s")
    say(not Path("/etc/modprobe.d/vmm-kvm-cores.conf").exists(), "the host boots as it did before")
    expect(run("kvm_core", build_id=build_a, state="absent"), changed=True)
    say(not loaded("kvm_thin"), "thin goes with the last core")
    expect(run("kvm_core", build_id=build_a, state="absent"), changed=False)
    expect(run("kvm_stage", state="absent", build_id=build_a), changed=True)
    subprocess.run(["modprobe", "kvm_amd"], check=True)
    expect(run("kvm_core", build_id=build_b, persist=True), changed=True)
    boot(build_b)


def boot(build: str) -> None:
    """The script that a boot runs: with the core it is told, and without it with the kernel's own KVM."""
    script = "/usr/local/lib/vmm-live-upgrade/load-kvm-cores"
    for module in (f"kvm_core_{B}", "kvm_thin"):
        subprocess.run(["rmmod", module], check=True)
    subprocess.run([script], check=True)
    say(loaded(f"kvm_core_{B}"), "the boot loads the core")
    expect(run("kvm_core", build_id=build, state="absent", persist=True), changed=True)
    core = STORE / build / f"kvm_core_{B}.ko"
    core.rename("/core")
    status = subprocess.run([script], check=False).returncode
    say(loaded("kvm_amd") and not loaded("kvm_thin"), "a boot whose core is missing loads the kernel's own KVM")
    say(status == 1, f"and says that it failed: {status}")


def artifact_of(name: str) -> str:
    return str(next(Path(f"/artifacts/{name}").glob("*.gz")))


def run(name: str, check: bool = False, **arguments: object) -> Result:
    """Run a module in this process: a start of Python takes seconds here."""
    module = importlib.import_module(f"{PLUGINS}.{name}")
    said = io.StringIO()
    with patch_module_args({**arguments, "_ansible_check_mode": check, "_ansible_diff": True}):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            module.main()
    return dict(json.loads(said.getvalue().strip().splitlines()[-1]))


def expect(result: Result, changed: bool) -> Result:
    say(not result.get("failed") and result["changed"] is changed, f"changed={changed} of {result}")
    return result


def refused(result: Result, why: str) -> None:
    say(bool(result.get("failed")) and why in result["msg"], f"refused because {why!r}: {result.get('msg', result)}")


@contextlib.contextmanager
def vm(node: str, seconds: int = 600) -> Any:
    """Something that runs VMs on a node, for so long."""
    process = subprocess.Popen(["vmload", node, str(seconds), "0xa001", "0"])
    try:
        while not any(os.readlink(path) == "anon_inode:kvm-vm" for path in Path(f"/proc/{process.pid}/fd").iterdir()):
            time.sleep(0.1)
        yield process.pid
    finally:
        if seconds > 100:
            process.kill()
        process.wait()


def loaded(module: str) -> bool:
    return any(line.split()[0] == module for line in Path("/proc/modules").read_text().splitlines())


def default() -> str:
    lines = Path("/sys/module/kvm_thin/parameters/cores").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.endswith("default=1"))


def say(true: bool, what: str) -> None:
    print(f"{'ok' if true else 'WRONG'}: {what}", flush=True)
    if not true:
        sys.exit(1)


if __name__ == "__main__":
    main()
