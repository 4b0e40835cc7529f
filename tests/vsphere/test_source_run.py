"""Jobs from a vCenter's doubles to a libvirt host, by the command line: every byte, every reason, nothing left behind.

The vCenter is the simulator behind its front, the disk library is the stand-in in the real plugin of nbdkit; everything
else is what users run. One front and one home for all: each test has a VM of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vsphere import simulator
from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.installing import Vsphere, installed, modes, raw, task_of
from tests.vsphere.library import kit
from tests.vsphere.library.kit import stand_in
from tests.vsphere.machines import Disk
from tests.vsphere.simulator import Inventory
from understudy.lab.hosts import LabHost

pytestmark = pytest.mark.timeout(1800)

AREA = 64 * 1024
#: No multiple of a block, a part, or of what tracking counts in.
SIZE = 4 * 1024 * 1024 + 512


@dataclass
class Case:
    """A VM, and the job that replicates it."""

    made: Vsphere
    admin: Client
    vm: str
    index: int

    @property
    def job(self) -> str:
        return f"job{self.index}"

    @property
    def vcenter(self) -> Front:
        return self.made.vcenter

    @property
    def ref(self) -> Any:
        return self.admin.named(vim.VirtualMachine, self.vm)

    def run(self, *options: str) -> dict[str, Any]:
        return self.made.replicate(self.job, *options)

    def disk(self, unit: int) -> Disk:
        """The disk at that place on its controller; the simulator gives keys in no order."""
        kind = vim.vm.device.VirtualDisk
        (key,) = [item.key for item in devices(self) if isinstance(item, kind) and item.unitNumber == unit]
        (found,) = [item for item in self.vcenter.disks(self.vm) if item.key == key]
        return found

    def live(self) -> bytes:
        """What the guest sees."""
        return self.disk(0).file.read_bytes()

    def frozen(self, disk: int = 0) -> bytes:
        """What the snapshot that is held has, as the front keeps it."""
        chain = self.disk(disk).chain
        (node,) = chain.frozen.values()
        return chain.file(node).read_bytes()

    def replica(self, disk: str = "scsi0:0") -> bytes:
        return raw(self.made.newest(self.vm)[disk])

    def same(self) -> bool:
        """Whether the newest point is what the guest sees, for a guest that did not write meanwhile."""
        return self.replica() == self.live()

    def write(self, seed: int, times: int, disk: int = 0) -> None:
        rng, target = random.Random(seed), self.disk(disk)
        for _ in range(times):
            length = rng.randint(1, 2 * AREA)
            self.vcenter.write(self.vm, target.key, rng.randint(0, target.capacity - length), rng.randbytes(length))

    @property
    def snapshots(self) -> list[str]:
        info = self.admin.properties(self.ref, "snapshot").get("snapshot")
        return [tree.name for tree in info.rootSnapshotList] if info else []


@pytest.fixture(scope="module")
def made() -> Iterator[Vsphere]:
    if reason := simulator.missing() or kit.missing():
        pytest.skip(reason)
    if os.geteuid():
        pytest.skip("needs root for a libvirt host of the lab")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-vs-")))
        place.chmod(0o755)
        for name in ("front", "home", "kit"):
            (place / name).mkdir()
        library = stack.enter_context(stand_in(kit.build(place / "kit"), place / "front"))
        vcenter = stack.enter_context(front(Inventory(vms=9), place / "front", page=3))
        beta = stack.enter_context(LabHost("beta", place / "beta"))
        yield stack.enter_context(installed(vcenter, library, beta, place / "home"))


@pytest.fixture
def admin(made: Vsphere) -> Iterator[Client]:
    """What others do on the vCenter."""
    with connected(made.vcenter.url, made.vcenter.user, made.vcenter.password) as client:
        yield client


@pytest.fixture
def case(made: Vsphere, admin: Client, request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A running VM with Tools and one disk of random bytes, and its job."""
    index = [item.name for item in request.session.items if item.path == request.path].index(request.node.name)
    found = Case(made, admin, f"DC0_C0_RP0_VM{index}", index)
    (tmp_path / "raw").write_bytes(random.Random(index).randbytes(SIZE))
    found.vcenter.place_disk(found.vm, tmp_path / "raw")
    found.vcenter.set_tools(found.vm, running=True)
    return found


def created(case: Case, *options: str) -> Case:
    case.made.job(case.job, case.vm, options=options)
    return case


def add_disk(case: Case) -> None:
    """A second disk, of the same size."""
    kind = vim.vm.device.ParaVirtualSCSIController
    (controller,) = [device.key for device in devices(case) if isinstance(device, kind)]
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller, unitNumber=1, capacityInKB=SIZE // 1024, capacityInBytes=SIZE // 1024 * 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True, datastore=only_disk(case).backing.datastore),
    )  # fmt: skip
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    case.admin.wait(case.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def devices(case: Case) -> list[Any]:
    return list(case.admin.properties(case.ref, "config.hardware.device")["config.hardware.device"])


def only_disk(case: Case) -> Any:
    (disk,) = [device for device in devices(case) if isinstance(device, vim.vm.device.VirtualDisk)]
    return disk


def during(case: Case, act: Callable[[], None]) -> dict[str, Any]:
    """Run the job, and do something while its snapshot is held and its disks are read."""
    with case.made.stalled(case.job, "read.middle") as run:
        act()
    assert run.ended.status == 0, run.ended
    return task_of(run.ended)


def newest_session(case: Case) -> int:
    sessions = case.made.ok("--json", "session", "list", "--job", case.job).json
    return max(int(session["id"]) for session in sessions)


def test_two_disks_are_their_snapshots_byte_for_byte_while_the_guest_goes_on_writing(case: Case) -> None:
    add_disk(case)
    created(case)
    names = ("scsi0:0", "scsi0:1")
    frozen: dict[str, bytes] = {}

    def go_on() -> None:
        for disk, name in enumerate(names):
            frozen[name] = case.frozen(disk)
            case.write(100 + disk, 5, disk)

    task = during(case, go_on)
    assert [mode for mode, _ in modes(task)] == ["full", "full"]
    assert task["consistency"] == "filesystem"
    for number in range(2):
        case.write(number, 4)
        case.write(10 + number, 3, 1)
        assert {name: case.replica(name) for name in names} == frozen
        task = during(case, go_on)
        assert modes(task) == [("incremental", "")] * 2
        assert all(disk["read_bytes"] < SIZE and disk["transport"] == "library" for disk in task["disks"])
        assert not task["error"]
    assert {name: case.replica(name) for name in names} == frozen
    assert case.snapshots == []


def test_every_disk_that_is_not_incremental_says_why_and_is_right_all_the_same(case: Case) -> None:
    created(case)
    first = case.run()
    assert modes(first) == [("full", "first_run")]
    assert any("changed block tracking was off, and is switched on" in text for text in first["warnings"])
    case.write(1, 3)
    case.vcenter.reset_tracking(case.vm)
    assert modes(case.run()) == [("digest_scan", "cbt_reset")]
    assert case.same()
    case.write(2, 3)
    refusal = vmodl.fault.InvalidArgument(invalidProperty="changeId", msg="A specified parameter was not correct.")
    case.vcenter.faults.fail("QueryChangedDiskAreas", refusal)
    assert modes(case.run()) == [("digest_scan", "cbt_refused")]
    assert case.same()
    grow(case)
    case.write(3, 3)
    assert modes(case.run()) == [("digest_scan", "disk_resized")]
    assert case.same()
    move(case)
    case.write(4, 3)
    assert modes(case.run()) == [("digest_scan", "source_replaced")]
    assert case.same()
    case.write(5, 3)
    assert modes(case.run()) == [("incremental", "")]
    assert case.same()


def grow(case: Case) -> None:
    disk = only_disk(case)
    disk.capacityInKB, disk.capacityInBytes = 5 * 1024, 5 * 1024 * 1024
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    case.admin.wait(case.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def move(case: Case) -> None:
    """As a move to another datastore does: the same content in another file, and a new tracking file."""
    disk, (before,) = only_disk(case), case.vcenter.disks(case.vm)
    folder = before.file.parent.with_name(f"{before.file.parent.name}_moved")
    folder.mkdir()
    for name in ("disk1.vmdk", "disk1-flat.vmdk"):
        shutil.copy(before.file.with_name(name), folder / name)
    removal = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    case.admin.wait(case.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[removal])))
    disk.backing.fileName = f"{disk.backing.fileName.partition('] ')[0]}] {folder.name}/disk1.vmdk"
    disk.backing.changeId, disk.backing.parent = None, None
    addition = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    case.admin.wait(case.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[addition])))


def test_a_snapshot_that_a_killed_controller_left_is_removed_by_the_next_run(case: Case) -> None:
    created(case)
    case.run()
    case.write(1, 3)
    with case.made.killed(case.job, "read.middle"):
        (left,) = case.snapshots
        case.write(2, 3)
    task = case.run()
    assert modes(task) == [("incremental", "")]
    assert f"removed snapshot '{left}' of a dead session from VM '{case.vm}'" in task["warnings"]
    assert case.same()
    assert case.snapshots == []


def test_a_sweep_finds_the_snapshot_of_a_dead_session_and_removes_it(case: Case) -> None:
    created(case)
    with case.made.killed(case.job, "read.middle"):
        (left,) = case.snapshots
    (found,) = [item for item in case.made.ok("--json", "sweep", "--dry-run", "--host", "vc").json
                if item["kind"] == "snapshot"]  # fmt: skip
    assert (found["name"], found["action"]) == (left, "commit")
    assert found["commands"] == [f"Get-VM '{case.vm}' | Get-Snapshot -Name '{left}' | Remove-Snapshot"]
    case.made.ok("sweep", "--host", "vc")
    assert case.snapshots == []


def test_a_delta_that_a_removal_left_is_consolidated_and_a_snapshot_that_stays_is_named(case: Case) -> None:
    created(case)
    case.vcenter.faults.leave_delta()
    task = case.run()
    needed = "runtime.consolidationNeeded"
    assert case.admin.properties(case.ref, needed) == {needed: False}
    case.write(1, 3)
    case.vcenter.faults.deny("RemoveSnapshot_Task")
    task = case.run()
    (left,) = case.snapshots
    (warning,) = [text for text in task["warnings"] if text.startswith("remove snapshot")]
    assert left in warning
    assert "the user lacks Denied.RemoveSnapshot_Task" in warning
    assert f"Get-Snapshot -Name '{left}'" in warning
    assert case.same()
    refused = case.made.run("--json", "job", "run", case.job)
    assert refused.status == 1
    assert left in task_of(refused)["error"]
    case.vcenter.faults.allow("RemoveSnapshot_Task")
    case.write(2, 3)
    assert modes(case.run()) == [("incremental", "")]
    assert case.same()
    assert case.snapshots == []


def test_a_session_that_expires_while_the_disks_are_read_is_renewed(case: Case) -> None:
    created(case)
    case.run()
    case.write(1, 3)
    task = during(case, case.vcenter.faults.expire_sessions)
    assert modes(task) == [("incremental", "")]
    # Ours has ended with all others.
    with connected(case.vcenter.url, case.vcenter.user, case.vcenter.password) as again:
        case.admin = again
        assert case.same()
        assert case.snapshots == []


def test_a_guest_that_must_be_quiesced_and_is_not_makes_no_point(case: Case) -> None:
    created(case, "--guest-processing", "require")
    case.vcenter.set_tools(case.vm, running=False)
    answer = case.made.run("--json", "job", "run", case.job)
    assert answer.status == 1
    assert "VMware Tools do not run in the guest" in task_of(answer)["error"]
    assert case.snapshots == []
    case.vcenter.set_tools(case.vm, running=True)
    assert case.run()["consistency"] == "filesystem"


def test_tracking_that_conceals_writes_is_found_out_by_samples_and_nothing_is_missing(case: Case) -> None:
    created(case)
    case.run()
    (disk,) = case.vcenter.disks(case.vm)
    case.vcenter.write(case.vm, disk.key, 0, random.Random(1).randbytes(SIZE), tracked=False)
    task = case.run()
    assert modes(task) == [("digest_scan", "cbt_mismatch")]
    assert task["disks"][0]["mismatched_blocks"] > 0
    assert case.same()
