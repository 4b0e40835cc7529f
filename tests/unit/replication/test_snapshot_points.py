"""Targets whose restore points are snapshots of the replica VM: the order of acts, and what is forgotten or removed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from tests.unit.replication.test_run import IDENTITY, JOB, OLD, End, Slots, Target, World
from understudy.context import Context
from understudy.errors import DatastoreError, PlatformError, Refused, ReplicaError, UnderstudyError
from understudy.model.access import DiskLibrary, LibraryLogin
from understudy.model.inventory import VmState
from understudy.model.job import SNAPSHOTS, Datastore, Host
from understudy.model.replica import ConversionWish, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.model.transfer import Reason, TransferMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.platforms.snapshot_target import PlaceSpace, SnapshotReplica, SnapshotVmSpec
from understudy.replication.estimate import estimate_vm
from understudy.replication.failover import FailoverSite, start_failover, undo_failover
from understudy.replication.site import Lease, Place, Task
from understudy.storage.values import HeadFacts
from understudy.units import GIB, MIB

LOGIN = LibraryLogin("vc.lan", "u", "p", "AB", DiskLibrary("/opt/kit"))


def point(name: str) -> RestorePoint:
    return replace(OLD, id=name)


@dataclass
class SnapshotWorld(World):
    """The same with a datastore of the platform; snapshots are those that are there, by the ids of their points."""

    snapshots: list[str] = field(default_factory=lambda: ["p0"])
    state: VmState | None = VmState.SHUT_OFF
    place_space: PlaceSpace = field(default_factory=lambda: PlaceSpace(10 * GIB, 9 * GIB, True))
    spec: SnapshotVmSpec | None = None
    attached: tuple[LibraryExport, ...] = ()
    problems: tuple[str, ...] = ()
    replica_state: ReplicaState = ReplicaState.READY

    @property
    def place(self) -> Place:
        there = super().place
        return replace(there, datastore=Datastore("ds", "b", SNAPSHOTS, "/srv", place="fast"),
                       target_host=Host("b", "vpx://vc.lan/", "/scratch"), target=cast("Any", SnapshotEnd(self)),
                       resources=SnapshotSlots(self))  # fmt: skip

    @property
    def failover_site(self) -> FailoverSite:
        ref = api.ReplicaRef(SNAPSHOTS, "/srv", "web_replica")
        return FailoverSite(ref, cast("MoverClient", SnapshotMover(self)), cast("Any", SnapshotEnd(self)))


class SnapshotEnd(Target):
    """The platform."""

    def __init__(self, world: SnapshotWorld) -> None:
        super().__init__(world)
        self._here = world

    def place_space(self, place: str) -> PlaceSpace:
        assert place == "fast"
        return self._here.place_space

    def snapshot_replica(self, identity: ReplicaIdentity) -> SnapshotReplica | None:
        if self._here.state is None:
            return None
        return SnapshotReplica(identity.name, self._here.state, {"vda": 64 * MIB}, tuple(self._here.snapshots))

    def make_snapshot_replica(self, ctx: Context, spec: SnapshotVmSpec) -> list[str]:
        self._here.act("make VM")
        self._here.spec = spec
        return ["its card is connected to nothing"]

    def leaf_export(self, identity: ReplicaIdentity, disk: str) -> LibraryExport:
        return LibraryExport(LOGIN, LibraryDisk(disk, "vm-1", "", f"[fast] web/{disk}.vmdk", 2000))

    def point_export(self, identity: ReplicaIdentity, disk: str, point: str) -> LibraryExport:
        return LibraryExport(LOGIN, LibraryDisk(disk, "vm-1", point, f"[fast] web/{disk}.vmdk", 2000))

    def take_point(self, ctx: Context, identity: ReplicaIdentity, point: str, text: str) -> None:
        self._here.act("take point")
        assert "VM 'web'" in text
        self._here.snapshots.append(point)

    def revert_to_point(self, ctx: Context, identity: ReplicaIdentity, point: str) -> None:
        self._here.act(f"revert {point}")

    def remove_points(self, ctx: Context, identity: ReplicaIdentity, points: tuple[str, ...]) -> list[str]:
        self._here.act(f"remove {' '.join(points)}")
        self._here.snapshots = [item for item in self._here.snapshots if item not in points]
        return list(self._here.problems)

    def remove_snapshot_replica(self, ctx: Context, identity: ReplicaIdentity) -> None:
        self._here.act("remove VM")

    def replica_state(self, uuid: str) -> VmState | None:
        return self._here.state

    def start_replica(self, uuid: str) -> None:
        self._here.act("start")

    def stop_replica(self, uuid: str) -> None:
        self._here.act("stop")


class SnapshotMover(End):
    """The proxy."""

    def __init__(self, world: SnapshotWorld) -> None:
        super().__init__(world)
        self._here = world

    def call(self, request: object, response_type: type) -> object:
        world = self._here
        match request:
            case api.InspectReplica():
                replica = Replica(IDENTITY, world.replica_state, world.points, OLD.id) if world.points else None
                return api.ReplicaFacts(replica, HeadFacts("p0", True, {}), 3, {}, {}, {}, "<domain/>")
            case api.AttachDisks(leaves=leaves):
                world.act("attach")
                world.attached = leaves
            case api.SealPoint():
                world.act("seal")
            case api.ForgetPoints(points=points):
                world.act(f"forget {' '.join(points)}")
                world.points = tuple(item for item in world.points if item.id not in points)
            case api.BindHead():
                world.act(f"bind head {request.point}")
                return api.HeadBound(HeadFacts(request.point, True, {}), "<domain/>")
            case api.SetState(state=state):
                world.act(f"state {state}")
            case _:
                return super().call(request, response_type)
        return api.Nothing()


class SnapshotSlots(Slots):
    def __init__(self, world: SnapshotWorld) -> None:
        super().__init__(world)
        self._here = world

    def reserve(self, *arguments: Any) -> Any:
        reserving = super().reserve(*arguments)
        end = cast("MoverClient", SnapshotMover(self._here))

        class Reserving:
            def __enter__(self) -> Lease:
                return replace(reserving.__enter__(), source_mover=end, target_mover=end)

            def __exit__(self, *error: Any) -> bool | None:
                return reserving.__exit__(*error)

        return Reserving()


def in_order(world: World, *words: str) -> None:
    assert [world.at(word) for word in words] == sorted(world.at(word) for word in words), world.events


def test_a_point_is_a_snapshot_made_between_the_last_byte_and_the_record() -> None:
    world = SnapshotWorld()
    outcome = world.run()
    in_order(world, "draft", "revert p0", "make VM", "attach", "snapshot", "copy", "seal", "take point", "publish",
             "snapshot ended", f"bind head {outcome.point}", "forget p0", "remove p0", "release draft")  # fmt: skip
    assert world.snapshots == [outcome.point]
    assert [item.disk.file for item in world.attached] == ["[fast] web/vda.vmdk"]
    assert world.spec is not None
    assert (world.spec.place, dict(world.spec.disks), world.spec.anew) == ("fast", {"vda": 64 * MIB}, frozenset())
    assert "define" not in world.events
    assert "replica VM 'web_replica': its card is connected to nothing" in world.warnings


def test_the_first_run_makes_new_disks_and_reverts_nothing() -> None:
    world = SnapshotWorld(points=(), snapshots=[], state=None)
    world.run()
    assert world.spec is not None
    assert world.spec.anew == {"vda"}
    assert not [word for word in world.events if word.startswith(("revert", "remove "))]


def test_what_an_attempt_wrote_that_failed_is_dropped_by_the_next() -> None:
    world = SnapshotWorld(breaks={"seal": DatastoreError("seal", "no space")})
    with pytest.raises(DatastoreError):
        world.run()
    assert "take point" not in world.events
    assert "publish" not in world.events
    world.breaks.clear()
    world.events.clear()
    world.run()
    in_order(world, "revert p0", "attach", "copy")


def test_a_snapshot_that_was_not_recorded_is_no_point_and_is_removed_by_the_next_attempt() -> None:
    world = SnapshotWorld(breaks={"publish": ReplicaError("publish", "killed")})
    with pytest.raises(ReplicaError):
        world.run()
    (stray,) = [name for name in world.snapshots if name != "p0"]
    world.breaks.clear()
    world.events.clear()
    world.run()
    in_order(world, "revert p0", f"remove {stray}", "make VM", "attach")
    assert stray not in world.snapshots


def test_points_whose_snapshots_are_gone_are_forgotten_before_anything_is_planned() -> None:
    world = SnapshotWorld(points=(point("p0"), point("p1")), snapshots=["p0"], job=replace(JOB, points=7))
    world.run()
    in_order(world, "forget p1", "draft", "revert p0")
    assert world.read is not None
    assert world.read.base_point == "p0"
    assert any("whose snapshots are gone: p1" in text for text in world.warnings)


def test_without_any_snapshot_everything_is_copied_into_new_disks() -> None:
    world = SnapshotWorld(snapshots=[], state=None)
    world.run()
    assert world.read is not None
    assert (world.read.mode, world.read.chained) == (TransferMode.FULL, False)
    assert world.spec is not None
    assert world.spec.anew == {"vda"}


def test_an_estimate_forgets_nothing() -> None:
    world = SnapshotWorld(points=(point("p0"), point("p1")), snapshots=["p0"])
    estimate_vm(world.ctx, Task(world.job, "web", "web", 2, False), world.place)
    assert not [word for word in world.events if word.startswith(("forget", "revert", "make", "attach", "draft"))]


def test_a_disk_that_grew_gets_a_new_file_and_older_points_keep_the_old_one() -> None:
    world = SnapshotWorld()
    grown = replace(world.vm.disks[0], size=128 * MIB)
    world.vm = replace(world.vm, disks=(grown,))
    world.run()
    assert world.read is not None
    assert (world.read.mode, world.read.chained, world.read.size) == (TransferMode.FULL, False, 128 * MIB)
    assert world.spec is not None
    assert world.spec.anew == {"vda"}
    report = world.reports[-1]
    assert (report.mode, report.reason) == (TransferMode.FULL, Reason.DISK_RESIZED)


def test_a_running_replica_vm_is_refused_before_anything_is_written() -> None:
    world = SnapshotWorld(state=VmState.RUNNING)
    with pytest.raises(Refused, match="it is running"):
        world.run()
    assert not {"make VM", "attach", "snapshot", "copy"} & set(world.events)


def test_a_snapshot_that_retention_cannot_remove_is_a_warning_and_tried_again_by_the_next_run() -> None:
    world = SnapshotWorld(problems=("point p0: TaskInProgress",))
    world.run()
    assert "retention of replica VM 'web_replica': point p0: TaskInProgress" in world.warnings
    assert [item.id for item in world.points] != ["p0"]


@pytest.mark.parametrize("space", [PlaceSpace(GIB, 512, True), PlaceSpace(GIB, GIB, False)])
def test_space_is_that_of_the_platforms_datastore(space: PlaceSpace) -> None:
    world = SnapshotWorld(points=(), snapshots=[], state=None, place_space=space)
    with pytest.raises(DatastoreError):
        world.run()
    assert "draft" not in world.events


def test_failover_reverts_and_records_before_the_vm_starts_and_undo_goes_back_to_the_newest() -> None:
    world = SnapshotWorld(points=(point("p0"), point("p1")), snapshots=["p0", "p1"])
    assert start_failover(Context(), world.failover_site, "p0").point == "p0"
    in_order(world, "revert p0", "bind head p0", "state failover", "start")
    world.replica_state, world.state = ReplicaState.FAILOVER, VmState.RUNNING
    world.events.clear()
    undo_failover(world.failover_site)
    in_order(world, "stop", "revert p1", "bind head p1", "state ready")


def test_failover_to_a_point_whose_snapshot_is_gone_is_refused() -> None:
    world = SnapshotWorld(points=(point("p0"), point("p1")), snapshots=["p0"])
    with pytest.raises(Refused, match="the snapshot of restore point p1 is gone"):
        start_failover(Context(), world.failover_site)
    assert world.events == []


def test_a_replica_of_its_own_platform_is_never_converted_and_not_even_reverted_for_that() -> None:
    world = SnapshotWorld()
    with pytest.raises(Refused, match="cannot be converted"):
        start_failover(Context(), world.failover_site, wish=ConversionWish.ALWAYS)
    assert world.events == []


def test_a_host_without_such_points_is_refused() -> None:
    world = World()
    place = replace(world.place, datastore=Datastore("ds", "b", SNAPSHOTS, "/srv", place="fast"))
    with pytest.raises(Refused, match="keeps no restore points as snapshots"):
        assert place.snapshots


def test_a_platform_that_refuses_the_snapshot_leaves_no_point() -> None:
    error: UnderstudyError = PlatformError("snapshot", "TooManySnapshotLevels")
    world = SnapshotWorld(breaks={"take point": error})
    with pytest.raises(PlatformError):
        world.run()
    assert "publish" not in world.events
    assert [item.id for item in world.points] == ["p0"]
    assert "keep new" not in world.events
