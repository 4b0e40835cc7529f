"""From vSphere to KVM as an administrator does it: replicate a VM that boots, let it run from a restore point, go back.

The vCenter is the simulator behind its front, the disk library is the stand-in in the real plugin of nbdkit, the target
is a libvirt host of the lab; the VM's disks are those of the lab's guest. All else is what users run. After each run
every restore point is compared with the copy that was made of the front's snapshot while it was held.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.system.commands import await_while
from tests.vsphere.client import Client
from tests.vsphere.guest_disk import GuestDisk
from tests.vsphere.installing import modes, task_of
from tests.vsphere.scene import INCREMENTAL, SYSTEM, Scene, World, devices, opened_world
from understudy.lab import agent
from understudy.lab.guest import build_guest
from understudy.lab.lab import DEFAULT_CACHE
from understudy.model.extent import PART, Extent
from understudy.units import MIB

pytestmark = pytest.mark.timeout(1800)

VM = "DC0_C0_RP0_VM0"
DATA = "scsi0:1"
#: No multiple of a block, a part, or of what tracking counts in.
DATA_SIZE = 16 * MIB + 512
#: Under emulation, on a busy machine.
BOOT_S = 400


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world(vms=1) as made:
        yield made


def boots(world: World, tmp_path: Path) -> Scene:
    """The VM whose disks are the lab's guest and a data disk, as VMware would give them to it."""
    scene = Scene(world, VM, (SYSTEM, DATA))
    equip(world.admin, scene.ref)
    system, data = tmp_path / "system.raw", tmp_path / "data.raw"
    image = build_guest(DEFAULT_CACHE).image
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, system], check=True)
    with data.open("wb") as file:
        file.truncate(DATA_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", data], check=True)
    for name, content in ((SYSTEM, system), (DATA, data)):
        world.vcenter.place_disk(VM, content, scene.disk(name).key)
    world.vcenter.set_tools(VM, running=True)
    return scene


def equip(admin: Client, vm: Any) -> None:
    """Memory to boot in, a vmxnet3 card in place of the E1000, and a second disk on the PVSCSI controller."""
    kinds = vim.vm.device
    (old,) = devices(admin, vm, kinds.VirtualE1000)
    (first,) = devices(admin, vm, kinds.VirtualDisk)
    (controller,) = devices(admin, vm, kinds.ParaVirtualSCSIController)
    card = kinds.VirtualVmxnet3(key=-1, backing=old.backing, addressType="manual", macAddress="00:50:56:aa:bb:cc")
    disk = kinds.VirtualDisk(
        key=-2, controllerKey=controller.key, unitNumber=1, capacityInKB=1024, capacityInBytes=MIB,
        backing=kinds.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True, datastore=first.backing.datastore),
    )  # fmt: skip
    changes = [
        kinds.VirtualDeviceSpec(operation="remove", device=old),
        kinds.VirtualDeviceSpec(operation="add", device=card),
        kinds.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk),
    ]
    admin.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=192, deviceChange=changes)))


@dataclass
class Guest:
    """What the guest of a scene writes: files on both disks, of which it is known what they must hold."""

    system: GuestDisk
    data: GuestDisk
    files: dict[str, bytes] = field(default_factory=dict)
    #: What was written since the last snapshot, by disk.
    written: dict[str, list[Extent]] = field(default_factory=lambda: {SYSTEM: [], DATA: []})

    @classmethod
    def of(cls, scene: Scene) -> Guest:
        start = build_guest(DEFAULT_CACHE).data_start
        return cls(GuestDisk(scene.vcenter, scene.vm, scene.disk(SYSTEM).key, start),
                   GuestDisk(scene.vcenter, scene.vm, scene.disk(DATA).key, 0))  # fmt: skip

    def put(self, name: str, seed: int, length: int) -> None:
        """Write a file of that name on both disks, of random bytes."""
        for mount, disk, place in (("/data", self.system, SYSTEM), ("/mnt/sdb", self.data, DATA)):
            content = random.Random(f"{place} {seed}").randbytes(length)
            self.written[place] += disk.put(name, content)
            self.files[f"{mount}/{name}"] = content

    def snapshot(self) -> dict[str, int]:
        """A snapshot is taken: how many bytes in whole parts were written since the last one, by disk."""
        counted = {place: PART * len(parts(areas)) for place, areas in self.written.items()}
        self.written = {SYSTEM: [], DATA: []}
        return counted


def parts(areas: Sequence[Extent]) -> set[int]:
    """The numbers of the parts that the areas touch."""
    return {part for area in areas for part in range(area.start // PART, (area.end - 1) // PART + 1)}


def replicate(scene: Scene, guest: Guest, number: int) -> dict[str, Any]:
    """Run the job; the guest goes on writing between its snapshot and the first read."""
    with scene.made.stalled(scene.job, "snapshot.after") as run:
        copies = scene.frozen()
        changed = guest.snapshot()
        guest.put(f"meanwhile-{number}", number, 150_000)
        # What counts is the snapshot: the live disks have something else already.
        for name in scene.disks:
            assert scene.disk(name).file.read_bytes() != copies[name].read_bytes()
    assert run.ended.status == 0, run.ended
    task = scene.published(task_of(run.ended), copies)
    for disk in task["disks"]:
        assert disk["transport"] == "library"
        assert 0 < disk["sent_bytes"] <= changed[disk["name"]] or disk["mode"] == "full"
    assert scene.snapshots == []
    return task


def test_a_vm_of_a_vcenter_is_replicated_runs_on_kvm_from_a_restore_point_and_goes_on_being_replicated(
        world: World, tmp_path: Path) -> None:
    scene = boots(world, tmp_path)
    guest = Guest.of(scene)
    checked = world.made.ok("--json", "host", "check", "vc").json
    assert (checked["usable"], checked["problems"], checked["vms"][0]["obstacle"]) == (True, [], "")
    scene.create_job()

    full_copy_of_both_disks_at_a_time(scene)
    for number in range(3):
        guest.put(f"before-{number}", 100 + number, 300_000)
        guest.put("again", 200 + number, 200_000)
        assert modes(replicate(scene, guest, number)) == [INCREMENTAL] * 2

    world.vcenter.reset_tracking(scene.vm)
    assert modes(replicate(scene, guest, 3)) == [("digest_scan", "cbt_reset")] * 2
    assert modes(replicate(scene, guest, 4)) == [INCREMENTAL] * 2
    world.made.ok("replica", "verify", scene.replica)

    failover_and_undo(scene, guest)
    assert modes(replicate(scene, guest, 5)) == [INCREMENTAL] * 2
    killed_with_its_snapshot_held(scene, guest)


def full_copy_of_both_disks_at_a_time(scene: Scene) -> None:
    """The controller is held after its first look at what it has begun: what is read then was begun together."""
    library = scene.made.library
    library.forget()
    with scene.made.stalled(scene.job, "read.middle") as run:
        copies = scene.frozen()
        paths = {node.path for name in scene.disks for node in scene.disk(name).chain.frozen.values()}
        await_while(run, lambda: {call.values["path"] for call in library.calls("Read")} == paths,
                    f"of {paths} only one is read")  # fmt: skip
    assert run.ended.status == 0, run.ended
    task = scene.published(task_of(run.ended), copies)
    assert modes(task) == [("full", "first_run")] * 2


def failover_and_undo(scene: Scene, guest: Guest) -> None:
    """The guest boots from the newest point and has all files of it; nothing of the replica changes."""
    before = scene.files()
    at_point = dict(guest.files)
    for path in [path for path in at_point if path.endswith("meanwhile-4")]:
        del at_point[path]  # written after the newest point's snapshot
    started = scene.made.ok("--json", "failover", "start", scene.replica, "--convert", "never").json
    assert started["note"].startswith("the guest was not converted")
    with scene.world.beta.connection() as beta:
        agent.wait_agent(beta, scene.replica, BOOT_S)

        def run(script: str) -> str:
            return agent.run_in_guest(beta, scene.replica, script, BOOT_S)

        # Which disk is sda depends on who answers first; the guest's start mounts none of that name.
        run("grep -q ' /mnt/sdb ' /proc/mounts && exit; mkdir -p /mnt/sdb; "
            "until mount -t ext4 /dev/sda /mnt/sdb 2>/dev/null; do usleep 50000; done")  # fmt: skip
        assert run("basename $(readlink /sys/class/net/eth0/device/driver)").strip() == "vmxnet3"
        assert run("ls /sys/bus/pci/drivers/vmw_pvscsi | grep -c :").strip() == "1"
        assert run("ls /data/meanwhile-4 /mnt/sdb/meanwhile-4 2>/dev/null | wc -l").strip() == "0"
        found = run(f"sha256sum {' '.join(sorted(at_point))}").splitlines()
        assert found == [f"{hashlib.sha256(at_point[path]).hexdigest()}  {path}" for path in sorted(at_point)]
        run("for place in /data /mnt/sdb; do echo made in failover > $place/change; rm $place/again; done; sync")
    assert not scene.made.ok("--json", "replica", "show", scene.replica).json["head_empty"]
    scene.made.ok("failover", "undo", scene.replica)
    assert scene.files() == before
    scene.check_points()
    scene.made.ok("replica", "verify", scene.replica)


def killed_with_its_snapshot_held(scene: Scene, guest: Guest) -> None:
    """The next run sweeps it, loses nothing that was written meanwhile, and nothing of ours is left in the vCenter."""
    guest.put("before-kill", 300, 100_000)
    with scene.made.killed(scene.job, "read.middle"):
        (left,) = scene.snapshots
        guest.put("after-kill", 301, 100_000)
        scene.check_points()
    task = replicate(scene, guest, 6)
    assert f"removed snapshot '{left}' of a dead session from VM '{scene.vm}'" in task["warnings"]
    assert modes(task) == [INCREMENTAL] * 2
    scene.assert_nothing_left()
