"""A VM of the front with its job to a libvirt host of the lab, and the restore points that its replica must have."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.system.steps import published_files
from tests.vsphere import simulator
from tests.vsphere.chain import copy_sparse
from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.installing import Vsphere, installed, with_vcenter
from tests.vsphere.library import kit
from tests.vsphere.library.kit import stand_in
from tests.vsphere.machines import Disk
from tests.vsphere.simulator import Inventory
from understudy.lab.hosts import LabHost
from understudy.model.extent import PART

SYSTEM = "scsi0:0"
INCREMENTAL = ("incremental", "")
#: Restore points; with one more the oldest is merged into the next.
KEPT = 7


@dataclass(frozen=True)
class World:
    """One installation for all tests of the file; each VM has a job of its name."""

    made: Vsphere
    beta: LabHost
    admin: Client
    place: Path

    @property
    def vcenter(self) -> Front:
        return self.made.vcenter


@dataclass(frozen=True)
class Instant:
    """A restore point, and what the disks of its VM were at its snapshot."""

    point: str
    copies: dict[str, Path]


@dataclass
class Scene:
    """A VM with its job, and all that its replica must have."""

    world: World
    vm: str
    disks: tuple[str, ...]
    instants: list[Instant] = field(default_factory=list)

    @property
    def job(self) -> str:
        return f"job-{self.vm[-3:]}"

    @property
    def replica(self) -> str:
        return f"{self.vm}_replica"

    @property
    def made(self) -> Vsphere:
        return self.world.made

    @property
    def vcenter(self) -> Front:
        return self.world.vcenter

    @property
    def ref(self) -> Any:
        return self.world.admin.named(vim.VirtualMachine, self.vm)

    def create_job(self) -> None:
        """The job of the VM."""
        self.made.job(self.job, self.vm, options=("--points", str(KEPT)))

    def disk(self, name: str) -> Disk:
        """The disk at that place; the simulator gives keys in no order."""
        (key,) = [device.key for device in devices(self.world.admin, self.ref, vim.vm.device.VirtualDisk)
                  if device.unitNumber == int(name[-1])]  # fmt: skip
        (found,) = [item for item in self.vcenter.disks(self.vm) if item.key == key]
        return found

    def write(self, seed: int, times: int = 3) -> None:
        """The guest writes at random places of a disk without a file system."""
        rng, disk = random.Random(seed), self.disk(SYSTEM)
        for _ in range(times):
            length = rng.randint(1, 2 * PART)
            self.vcenter.write(self.vm, disk.key, rng.randint(0, disk.capacity - length), rng.randbytes(length))

    def frozen(self) -> dict[str, Path]:
        """Copies of the disks of the snapshot that is held, as the front keeps them."""
        return {name: self._copy(name) for name in self.disks}

    def _copy(self, name: str) -> Path:
        chain = self.disk(name).chain
        (node,) = chain.frozen.values()
        copy = self.world.place / f"{self.vm}-{name}-{len(self.instants)}.raw"
        copy_sparse(chain.file(node), copy)
        return copy

    def published(self, task: dict[str, Any], copies: dict[str, Path]) -> dict[str, Any]:
        """A run made a point of these copies, and all that the replica has is right."""
        assert not task["error"]
        self.instants.append(Instant(task["restore_point"], copies))
        self.check_points()
        return task

    def check_points(self) -> None:
        """The replica has exactly the points that it should have, each with the bytes of its instant."""
        points, wanted = self.points(), self.instants[-KEPT:]
        assert [point["id"] for point in points] == [instant.point for instant in wanted]
        for point, instant in zip(points, wanted, strict=True):
            sizes = {name: copy.stat().st_size for name, copy in instant.copies.items()}
            assert {disk["name"]: disk["size"] for disk in point["disks"]} == sizes
            for disk in point["disks"]:
                self._assert_same(disk["image"], instant.copies[disk["name"]])

    def _assert_same(self, image: str, copy: Path) -> None:
        command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, str(copy)]
        done = subprocess.run([*self.made.elsewhere, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def points(self) -> list[Any]:
        return list(self.made.ok("--json", "replica", "points", self.replica).json)

    def files(self) -> dict[str, str]:
        """Hashes of all layers, digests and points."""
        return published_files(Path(self.points()[0]["disks"][0]["image"]).parent.parent)

    def run(self) -> dict[str, Any]:
        """Run the job, of whose VM nobody writes meanwhile."""
        task = self.made.replicate(self.job)
        copies = {}
        for name in self.disks:
            copies[name] = self.world.place / f"{self.vm}-{name}-{len(self.instants)}.raw"
            copy_sparse(self.disk(name).file, copies[name])
        return self.published(task, copies)

    @property
    def snapshots(self) -> list[str]:
        info = self.world.admin.properties(self.ref, "snapshot").get("snapshot")
        return [tree.name for tree in info.rootSnapshotList] if info else []

    def assert_nothing_left(self) -> None:
        """No snapshot, no delta, and nothing that a sweep would find."""
        needed = "runtime.consolidationNeeded"
        assert self.snapshots == []
        assert self.world.admin.properties(self.ref, needed) == {needed: False}
        assert all(disk.chain.nodes == [disk.chain.live] for disk in self.vcenter.disks(self.vm))
        for disk in self.vcenter.disks(self.vm):
            assert not list(disk.file.parent.glob("*-0000??*"))
        assert self.made.ok("--json", "sweep", "--dry-run", "--host", "vc").json == []


def devices(admin: Client, vm: Any, kind: Any) -> list[Any]:
    """The devices of that kind."""
    listed = admin.properties(vm, "config.hardware.device")["config.hardware.device"]
    return [device for device in listed if isinstance(device, kind)]


@contextmanager
def opened_vcenter(vms: int) -> Iterator[tuple[Vsphere, Client, Path]]:
    """A vCenter with a home that knows it, and a directory for more; the test is skipped where there cannot be one."""
    if reason := simulator.missing() or kit.missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-vt-")))
        for name in ("front", "kit", "store"):
            (place / name).mkdir()
        library = stack.enter_context(stand_in(kit.build(place / "kit"), place / "front"))
        vcenter = stack.enter_context(front(Inventory(vms=vms), place / "front", page=3))
        admin = stack.enter_context(connected(vcenter.url, vcenter.user, vcenter.password))
        yield with_vcenter(vcenter, library, place), admin, place


@contextmanager
def opened_world(vms: int) -> Iterator[World]:
    """A new world; the test is skipped where there cannot be one."""
    if reason := simulator.missing() or kit.missing():
        pytest.skip(reason)
    if os.geteuid():
        pytest.skip("needs root for a libvirt host of the lab")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-vk-")))
        place.chmod(0o755)
        for name in ("front", "home", "kit", "copies"):
            (place / name).mkdir()
        library = stack.enter_context(stand_in(kit.build(place / "kit"), place / "front"))
        vcenter = stack.enter_context(front(Inventory(vms=vms), place / "front", page=3))
        beta = stack.enter_context(LabHost("beta", place / "beta"))
        made = stack.enter_context(installed(vcenter, library, beta, place / "home"))
        admin = stack.enter_context(connected(vcenter.url, vcenter.user, vcenter.password))
        yield World(made, beta, admin, place / "copies")
