"""What breaks around a session: fault points of the program, and acts on hosts, VMs and files."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import understudy
from tests.soak.drawing import Fault
from tests.system.installation import Installation
from tests.system.steps import our_checkpoints
from understudy.lab.vm import LabVm
from understudy.model.session import Step


def fault_points() -> list[str]:
    """Every fault point of the source, sorted; those of steps are made of the list of steps."""
    sources = Path(next(iter(understudy.__path__))).rglob("*.py")
    named = {name for path in sources for name in re.findall(r'fault_point\("([^"]+)"\)', path.read_text())}
    return sorted(named | {f"{step}.{side}" for step in Step for side in ("before", "after")})


def kill_qemu(vm: LabVm) -> None:
    """As a crash would."""
    vm.process().signal(signal.SIGKILL)
    vm.wait_off()


def delete_checkpoint(vm: LabVm, pick: int) -> bool:
    """Delete one of ours, as an administrator might; False if there is none or the VM is off."""
    if not vm.is_running():
        return False
    names = our_checkpoints(vm)
    if not names:
        return False
    # After a crash of QEMU the bitmap may be missing: then libvirt cannot delete it, and this is an error of the lab.
    with vm.domain() as domain:
        domain.checkpointLookupByName(names[pick % len(names)]).delete()
    return True


def digest_files(installation: Installation) -> list[Path]:
    """Those of both sides."""
    source = (installation.home / "proxies").glob("*/digests/*/*.digest")
    return sorted([*source, *installation.store.glob("*/digests/*.digest")])


def delete_digests(files: list[Path], pick: int) -> list[Path]:
    """Delete about half of the files; which."""
    chosen = [path for number, path in enumerate(files) if pick >> number % 30 & 1]
    for path in chosen:
        path.unlink()
    return chosen


def flip_digest(files: list[Path], pick: int) -> list[Path]:
    """Flip one bit in one of the files; which."""
    if not files:
        return []
    path = files[pick % len(files)]
    content = bytearray(path.read_bytes())
    content[(pick >> 3) % len(content)] ^= 1 << pick % 8
    path.write_bytes(content)
    return [path]


def host_faults(
    installation: Installation, vm: LabVm, pick: int, spoilt: set[Path]
) -> Mapping[Fault, Callable[[], bool]]:
    """What can be done to hosts, VMs and files; each says whether there was something to do it to.

    :param spoilt: gets the digest files that were deleted or flipped.
    """

    def done(act: Callable[[], None]) -> Callable[[], bool]:
        def run() -> bool:
            act()
            return True

        return run

    def on(act: Callable[[], None]) -> Callable[[], bool]:
        return lambda: vm.is_running() and done(act)()

    def spoil(act: Callable[[list[Path], int], list[Path]]) -> bool:
        chosen = act(digest_files(installation), pick)
        spoilt.update(chosen)
        return bool(chosen)

    return {
        Fault.KILL_QEMU: on(lambda: kill_qemu(vm)),
        Fault.POWER_OFF: on(vm.destroy),
        Fault.RESTART_LIBVIRTD: done(installation.lab.alpha.restart),
        Fault.DELETE_CHECKPOINT: lambda: delete_checkpoint(vm, pick),
        Fault.DELETE_DIGESTS: lambda: spoil(delete_digests),
        Fault.FLIP_DIGEST: lambda: spoil(flip_digest),
    }
