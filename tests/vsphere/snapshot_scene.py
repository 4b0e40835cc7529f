"""A VM of the front whose replica is on the same server: its restore points are snapshots of the replica VM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.vsphere.chain import flat_file
from tests.vsphere.scene import KEPT, Scene, World, devices
from understudy.platforms.vsphere.replica_points import POINT

STORE = "LocalDS_0"


def add_datastore(world: World) -> None:
    """The datastore ``dr``, which is on the vCenter."""
    directory = world.place / "dr"
    directory.mkdir()
    world.made.ok("datastore", "add", "dr", "--host", "vc", "--kind", "vsphere", "--place", STORE,
                  "--path", str(directory))  # fmt: skip


@dataclass
class SnapshotScene(Scene):
    """A VM with its job to the datastore ``dr``."""

    def create_job(self, *options: str) -> None:
        """The job of the VM."""
        self.made.ok("job", "create", self.job, "--source", "vc", "--target", "vc", "--datastore", "dr",
                     "--vm", self.vm, "--block-size", "256K", "--points", str(KEPT), *options)  # fmt: skip

    def check_points(self) -> None:
        """The replica has exactly the points that it should have, on record and as snapshots, each with its bytes."""
        wanted = self.instants[-KEPT:]
        assert [point["id"] for point in self.points()] == [instant.point for instant in wanted]
        held = self.replica_snapshots()
        assert set(held) == {POINT + instant.point for instant in wanted}
        for instant in wanted:
            files = self._files_of(held[POINT + instant.point])
            assert files.keys() == instant.copies.keys()
            for name, copy in instant.copies.items():
                # Not the bytes themselves: of a difference between megabytes pytest tells at length.
                assert (name, files[name].read_bytes() == copy.read_bytes()) == (name, True)

    def replica_snapshots(self) -> dict[str, Any]:
        """The snapshots of the replica VM, by name."""
        vm = self.world.admin.named(vim.VirtualMachine, self.replica)
        info = self.world.admin.properties(vm, "snapshot").get("snapshot")
        waiting, found = list(info.rootSnapshotList if info else ()), {}
        while waiting:
            tree = waiting.pop()
            found[tree.name] = tree.snapshot
            waiting += tree.childSnapshotList or ()
        return found

    def _files_of(self, snapshot: Any) -> dict[str, Path]:
        """The local file of each disk in a snapshot, as the front keeps it."""
        disks = devices(self.world.admin, snapshot, vim.vm.device.VirtualDisk)
        folder = self.vcenter.datastores[STORE]
        return {f"scsi0:{disk.unitNumber}": flat_file(folder, disk.backing.fileName) for disk in disks}

    def check_replica_settled(self) -> None:
        """The replica VM is off, and the server has nothing of it to merge."""
        vm = self.world.admin.named(vim.VirtualMachine, self.replica)
        asked = ("runtime.powerState", "runtime.consolidationNeeded")
        assert self.world.admin.properties(vm, *asked) == dict(zip(asked, ("poweredOff", False), strict=True))
