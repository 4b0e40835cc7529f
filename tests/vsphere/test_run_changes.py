"""A VM whose disks change between two runs of its job, to KVM and to vSphere: reasons, bytes, and what was foretold.

Before each run ``job estimate`` says what the run will do; it leaves no snapshot behind.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.installing import modes
from tests.vsphere.scene import INCREMENTAL, SYSTEM, Scene, World, devices, opened_world
from tests.vsphere.snapshot_scene import SnapshotScene, add_datastore
from understudy.model.extent import PART
from understudy.units import MIB

pytestmark = pytest.mark.timeout(1800)

DATA = "scsi0:1"
#: No multiple of a block, a part, or of what tracking counts in.
SIZE, DATA_SIZE, GROWN = 4 * MIB + 512, 2 * MIB + 512, 5 * MIB
Device = vim.vm.device.VirtualDeviceSpec


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world(vms=2) as made:
        add_datastore(made)
        yield made


@pytest.fixture(params=[(Scene, 0), (SnapshotScene, 1)], ids=["kvm", "vsphere"])
def scene(world: World, request: pytest.FixtureRequest) -> Scene:
    """A running VM with one disk of random bytes, and its job."""
    kind, number = request.param
    made: Scene = kind(world, f"DC0_C0_RP0_VM{number}", (SYSTEM,))
    place(made, SYSTEM, SIZE)
    world.vcenter.set_tools(made.vm, running=True)
    made.create_job()
    return made


def place(scene: Scene, name: str, size: int) -> None:
    """Give a disk that is new random bytes, and that size."""
    content = scene.world.place / "content.raw"
    content.write_bytes(random.Random(f"{scene.vm} {name} {len(scene.instants)}").randbytes(size))
    scene.vcenter.place_disk(scene.vm, content, scene.disk(name).key)


def write(scene: Scene, *names: str) -> None:
    """The guest writes to disks."""
    for name in names or scene.disks:
        rng, disk = random.Random(f"{name} {len(scene.instants)}"), scene.disk(name)
        for _ in range(3):
            length = rng.randint(1, 2 * PART)
            scene.vcenter.write(scene.vm, disk.key, rng.randint(0, disk.capacity - length), rng.randbytes(length))


def device(scene: Scene, name: str) -> Any:
    found = devices(scene.world.admin, scene.ref, vim.vm.device.VirtualDisk)
    (disk,) = [item for item in found if item.unitNumber == int(name[-1])]
    return disk


def change(scene: Scene, item: Any, **how: str) -> None:
    """Change the VM by one device."""
    spec = vim.vm.ConfigSpec(deviceChange=[Device(device=item, **how)])
    scene.world.admin.wait(scene.ref.ReconfigVM_Task(spec))


def add_disk(scene: Scene) -> None:
    """A disk beside the first, with content."""
    first, kinds = device(scene, SYSTEM), vim.vm.device.VirtualDisk
    backing = kinds.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True,
                                        datastore=first.backing.datastore)  # fmt: skip
    disk = kinds(key=-1, controllerKey=first.controllerKey, unitNumber=1, capacityInKB=1024, capacityInBytes=MIB,
                 backing=backing)  # fmt: skip
    change(scene, disk, operation="add", fileOperation="create")
    scene.disks = (SYSTEM, DATA)
    place(scene, DATA, DATA_SIZE)


def remove_disk(scene: Scene) -> None:
    """Take the second disk off; its file stays."""
    change(scene, device(scene, DATA), operation="remove")
    scene.disks = (SYSTEM,)


def grow(scene: Scene, name: str, size: int) -> None:
    disk = device(scene, name)
    disk.capacityInKB, disk.capacityInBytes = size // 1024, size
    change(scene, disk, operation="edit")


def move(scene: Scene, name: str) -> None:
    """As a move to another datastore does: the same content in another file, and a new tracking file."""
    disk, before = device(scene, name), scene.disk(name).file
    folder = before.parent.with_name(f"{before.parent.name}_moved")
    folder.mkdir()
    stem = before.name.removesuffix("-flat.vmdk")
    for file in (f"{stem}.vmdk", before.name):
        shutil.copy(before.with_name(file), folder / file)
    change(scene, disk, operation="remove")
    store = disk.backing.fileName.partition("] ")[0]
    disk.backing.fileName = f"{store}] {folder.name}/{stem}.vmdk"
    disk.backing.changeId, disk.backing.parent = None, None
    change(scene, disk, operation="add")


def foretold(scene: Scene) -> dict[str, Any]:
    """Estimate and run; the run does what was foretold, and the estimate has left nothing."""
    document = scene.made.ok("--json", "job", "estimate", scene.job).json
    assert scene.snapshots == []
    assert all(disk.chain.nodes == [disk.chain.live] for disk in scene.vcenter.disks(scene.vm))
    (said,) = document["vms"]
    assert (said["state"], said["error"]) == ("success", None)
    task = scene.run()
    assert [disk["name"] for disk in said["disks"]] == [disk["name"] for disk in task["disks"]]
    for guess, disk in zip(said["disks"], task["disks"], strict=True):
        what = ("mode", "reason", "size")
        assert [guess[name] for name in what] == [disk[name] for name in what]
        assert guess["read"] == disk["read_bytes"]
        if disk["mode"] == "digest_scan":
            assert guess["send"] >= disk["sent_bytes"]
        else:
            assert guess["send"] == disk["sent_bytes"]
        assert (guess["changed"] is None) == (disk["mode"] != "incremental")
    return task


def test_disks_come_grow_move_go_and_come_again(scene: Scene) -> None:
    grown = {Scene: ("digest_scan", "disk_resized"), SnapshotScene: ("full", "disk_resized")}[type(scene)]
    assert modes(foretold(scene)) == [("full", "first_run")]

    add_disk(scene)
    write(scene, SYSTEM)
    assert modes(scene.run()) == [INCREMENTAL, ("full", "new_disk")]
    write(scene)
    assert modes(foretold(scene)) == [INCREMENTAL] * 2

    scene.vcenter.reset_tracking(scene.vm)
    write(scene)
    assert modes(foretold(scene)) == [("digest_scan", "cbt_reset")] * 2

    grow(scene, SYSTEM, GROWN)
    move(scene, DATA)
    write(scene)
    scene.vcenter.write(scene.vm, scene.disk(SYSTEM).key, GROWN - 1000, bytes(range(200)) * 5)
    assert modes(foretold(scene)) == [grown, ("digest_scan", "source_replaced")]

    remove_disk(scene)
    write(scene)
    task = scene.run()
    assert modes(task) == [INCREMENTAL]
    assert any(text.startswith(f"disk {DATA} is no longer part of VM") for text in task["warnings"])

    add_disk(scene)
    write(scene, SYSTEM)
    assert modes(scene.run()) == [INCREMENTAL, ("full", "new_disk")]
    write(scene)
    assert modes(scene.run()) == [INCREMENTAL] * 2
    scene.assert_nothing_left()
    scene.made.ok("replica", "verify", scene.replica)
