"""A vCenter of the front as a target: a replica of one of its VMs, and what a proxy writes at its leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.vsphere.client import Client
from tests.vsphere.front import Front
from tests.vsphere.machines import Disk
from tests.vsphere.sourcing import AT_ONCE, access
from tests.vsphere.steps import AREA, SIZE, VM
from understudy.context import Context
from understudy.model.access import DiskLibrary
from understudy.model.replica import ReplicaIdentity
from understudy.platforms.snapshot_target import SnapshotVmSpec
from understudy.platforms.vsphere.definition import VmHardware, domain_definition, hardware_of
from understudy.platforms.vsphere.host import VsphereHost
from understudy.platforms.vsphere.replica_points import POINT
from understudy.platforms.vsphere.trust import fetch_certificate

STORE = "LocalDS_0"
REPLICA = "web_replica"
IDENTITY = ReplicaIdentity("11111111-2222-4333-8444-555555555555", REPLICA, "job-1", "nightly", VM, "uuid-of-source",
                           "99999999-8888-4777-8666-555555555555")  # fmt: skip
#: As the controller makes them.
POINTS = ("20261130-091500-ab12", "20261130-101500-cd34", "20261130-111500-ef56", "20261130-121500-0178")


@dataclass
class TargetLab:
    """The replica of the front's first VM, and the verbs of our platform."""

    vcenter: Front
    client: Client
    host: VsphereHost
    ctx: Context = field(default_factory=Context)

    @property
    def hardware(self) -> VmHardware:
        """The source VM's hardware as it is now."""
        found = hardware_of(self.host.describe_vm(VM).definition)
        assert found is not None
        return found

    def spec(self, hardware: VmHardware | None = None, *, anew: set[str] | None = None) -> SnapshotVmSpec:
        """The replica VM of the source; all disks are new unless it is said which."""
        found = hardware or self.hardware
        disks = {disk.name: disk.capacity for disk in found.disks}
        return SnapshotVmSpec(IDENTITY, domain_definition(found), disks,
                              frozenset(disks if anew is None else anew), STORE)  # fmt: skip

    def make(self, hardware: VmHardware | None = None, *, anew: set[str] | None = None) -> list[str]:
        return self.host.make_snapshot_replica(self.ctx, self.spec(hardware, anew=anew))

    def grown(self, size: int = 2 * SIZE) -> VmHardware:
        """The source's hardware with its disk grown."""
        found = self.hardware
        return replace(found, disks=tuple(replace(disk, capacity=size) for disk in found.disks))

    def two_disks(self) -> VmHardware:
        """The source's hardware with a second disk of the same size."""
        found = self.hardware
        (first,) = found.disks
        return replace(found, disks=(first, replace(first, name=f"{first.name[:-1]}1", unit=1, key=2001)))

    def take(self, point: str) -> None:
        self.host.take_point(self.ctx, IDENTITY, point, f"point {point} of VM {VM}")

    def revert(self, point: str) -> None:
        self.host.revert_to_point(self.ctx, IDENTITY, point)

    def remove(self, *points: str) -> list[str]:
        return self.host.remove_points(self.ctx, IDENTITY, points)

    @property
    def ref(self) -> Any:
        return self.client.named(vim.VirtualMachine, REPLICA)

    def points(self) -> tuple[str, ...]:
        found = self.host.snapshot_replica(IDENTITY)
        assert found is not None
        return found.points

    def disk(self, index: int = 0) -> Disk:
        return self.vcenter.disks(REPLICA)[index]

    def leaf(self, name: str | None = None) -> Path:
        """The local file that a proxy would write to, found by the export alone."""
        export = self.host.leaf_export(IDENTITY, name or self.hardware.disks[0].name)
        return self.local(export.disk.file)

    def frozen(self, point: str, name: str | None = None) -> Path:
        """The local file that a proxy would read of a point."""
        export = self.host.point_export(IDENTITY, name or self.hardware.disks[0].name, point)
        assert export.disk.snapshot
        return self.local(export.disk.file)

    def local(self, file: str) -> Path:
        store, _, path = file.removeprefix("[").partition("] ")
        return self.vcenter.datastores[store] / (path.removesuffix(".vmdk") + "-flat.vmdk")

    def write(self, seed: int, name: str | None = None) -> bytes:
        """Write at the leaf; its bytes then."""
        rng, leaf = random.Random(seed), self.leaf(name)
        with leaf.open("r+b") as file:
            for _ in range(5):
                file.seek(rng.randrange(SIZE - AREA))
                file.write(rng.randbytes(AREA))
        return leaf.read_bytes()

    def properties(self, *names: str) -> dict[str, Any]:
        return self.client.properties(self.ref, *names)

    def devices(self, kind: Any) -> list[Any]:
        found = self.properties("config.hardware.device")["config.hardware.device"]
        return [device for device in found if isinstance(device, kind)]

    def snapshot(self, name: str) -> Any:
        """A snapshot that somebody takes by hand."""
        return self.client.wait(self.ref.CreateSnapshot_Task(name, "by hand", False, False))

    def moref_of(self, point: str) -> Any:
        return next(found for name, found in self.tree() if name == POINT + point)

    def tree(self) -> list[tuple[str, Any]]:
        """Names and references of all snapshots."""
        info = self.properties("snapshot").get("snapshot")
        waiting, found = list(info.rootSnapshotList if info else ()), []
        while waiting:
            item = waiting.pop()
            found.append((item.name, item.snapshot))
            waiting += item.childSnapshotList or ()
        return found


@contextmanager
def target_lab(vcenter: Front, client: Client, library: DiskLibrary = DiskLibrary()) -> Iterator[TargetLab]:  # noqa: B008 - frozen
    """The lab, with a session of its own."""
    shown = fetch_certificate("127.0.0.1", vcenter.port)
    host = VsphereHost(access(vcenter, shown.thumbprint, library), AT_ONCE)
    try:
        yield TargetLab(vcenter, client, host)
    finally:
        host.close()
