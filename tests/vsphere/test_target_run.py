"""A job from a vCenter's double to the same one, by the command line: points that are snapshots, to the byte."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.vsphere.client import Client
from tests.vsphere.front import Front
from tests.vsphere.installing import Vsphere
from tests.vsphere.scene import opened_vcenter
from tests.vsphere.steps import VM
from understudy.platforms.vsphere.replica_points import POINT

pytestmark = pytest.mark.timeout(1800)

AREA = 64 * 1024
#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * 1024 * 1024 + 512
REPLICA = f"{VM}_replica"


@dataclass
class Scene:
    """A source VM, a job, and its replica on the same server."""

    made: Vsphere
    vcenter: Front
    client: Client

    def write(self, seed: int) -> bytes:
        """The guest writes; what its disk has then."""
        rng, (disk,) = random.Random(seed), self.vcenter.disks(VM)
        for _ in range(5):
            length = rng.randint(1, 2 * AREA)
            self.vcenter.write(VM, disk.key, rng.randrange(SIZE - length), rng.randbytes(length))
        return self.source()

    def source(self) -> bytes:
        (disk,) = self.vcenter.disks(VM)
        return disk.file.read_bytes()

    def leaf(self) -> bytes:
        (disk,) = self.vcenter.disks(REPLICA)
        return disk.file.read_bytes()

    def points(self) -> list[str]:
        return [point["id"] for point in self.made.ok("--json", "replica", "points", REPLICA).json]

    def content(self, point: str) -> bytes:
        """The bytes of a point, as the front keeps them for its snapshot."""
        info = self.client.properties(self.client.named(vim.VirtualMachine, REPLICA), "snapshot")["snapshot"]
        waiting = list(info.rootSnapshotList)
        while waiting:
            item = waiting.pop()
            waiting += item.childSnapshotList
            if item.name == POINT + point:
                (disk,) = self.vcenter.disks(REPLICA)
                return disk.chain.file(disk.chain.frozen[item.snapshot._moId]).read_bytes()
        raise AssertionError(f"no snapshot of {point}")

    def state(self) -> str:
        path = "runtime.powerState"
        return str(self.client.properties(self.client.named(vim.VirtualMachine, REPLICA), path)[path])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "raw").write_bytes(random.Random(1).randbytes(SIZE))
    with opened_vcenter(vms=1) as (made, client, place):
        made.vcenter.place_disk(VM, tmp_path / "raw")
        made.vcenter.set_tools(VM, running=True)
        made.ok("datastore", "add", "ds", "--host", "vc", "--path", str(place / "store"), "--kind", "vsphere",
                "--place", "LocalDS_0")  # fmt: skip
        made.job("job", VM, target="vc", options=("--points", "2"))
        yield Scene(made, made.vcenter, client)


def test_points_are_the_source_byte_for_byte_and_a_failover_is_undone_to_the_newest(scene: Scene) -> None:
    kept = {}
    for seed in (2, 3, 4):
        now = scene.write(seed)
        scene.made.replicate("job")
        kept[scene.points()[-1]] = now
    points = scene.points()
    assert len(points) == 2  # retention has removed the first
    assert {point: scene.content(point) for point in points} == {point: kept[point] for point in points}
    scene.made.ok("replica", "verify", REPLICA)
    scene.made.ok("failover", "start", REPLICA, "--point", points[0])
    assert scene.state() == "poweredOn"
    assert scene.leaf() == kept[points[0]]
    (disk,) = scene.vcenter.disks(REPLICA)
    scene.vcenter.write(REPLICA, disk.key, 0, b"written by the replica")
    scene.made.ok("failover", "undo", REPLICA)
    assert scene.state() == "poweredOff"
    assert scene.leaf() == kept[points[1]]
    now = scene.write(5)
    scene.made.replicate("job")
    assert scene.content(scene.points()[-1]) == now == scene.source()
    scene.made.ok("replica", "remove", REPLICA, "--delete-files")
    with pytest.raises(LookupError):
        scene.client.named(vim.VirtualMachine, REPLICA)
