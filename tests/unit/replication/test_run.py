"""The run of one task on scripted collaborators: the order that keeps data safe, and what is undone when it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.errors import (
    Cancelled,
    DatastoreError,
    MoverError,
    PlatformError,
    Refused,
    ReplicaError,
    TrackingLost,
    TransferError,
    UnderstudyError,
)
from understudy.model.access import DiskLibrary, LibraryLogin
from understudy.model.estimate import Sums
from understudy.model.exclusion import DiskSurvey, Exclusion, pack
from understudy.model.extent import Extent
from understudy.model.guest import GuestPolicy, GuestReport
from understudy.model.health import DiskHealth
from understudy.model.inventory import Disk, HostFacts, Vm, VmState
from understudy.model.job import Datastore, Host, Job, Proxy, SnapshotMode
from understudy.model.replica import (
    Baseline,
    Consistency,
    FileMark,
    ImageGeneration,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
    SourceGeneration,
)
from understudy.model.session import DiskReport, Step, StepState
from understudy.model.snapshot import LibraryDisk, LibraryExport, ServedDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason, TransferMode, TransportMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.work import error_fields
from understudy.platforms import ReplicaVmSpec, SourcePlatform, TargetPlatform
from understudy.replication import power
from understudy.replication.held import HeldTask
from understudy.replication.run import replicate_vm, resume_vm
from understudy.replication.site import Lease, Place, Task, TaskOutcome
from understudy.storage.values import DatastoreFacts, HeadFacts, PointMeta
from understudy.units import GIB, MIB

JOB = Job("0123456789abcdef", "nightly", "a", "b", "ds", ("web",), points=1, guest_policy=GuestPolicy.OFF,
          exclude_swap=False)  # fmt: skip
DISK = Disk("vda", "/images/web.qcow2", "qcow2", 64 * MIB, MIB, tracked=True)
VM = Vm("web", "source-uuid", VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, (DISK,), (), False, False, "<domain/>")
IDENTITY = ReplicaIdentity("replica-1", "web_replica", JOB.id, "nightly", "web", "source-uuid", "replica-uuid")
OLD_DISK = PointDisk("vda", 64 * MIB, "a.qcow2", "", "a.digest", 1, DISK.path)
OLD = RestorePoint("p0", "2026-01-01T00:00:00.000+00:00", Consistency.CRASH, 1, MIB, (OLD_DISK,),
                   Baseline("cp-old", ("vda",), "p0", "1"))  # fmt: skip
SUMS = Sums(used=5, zero=7, changed=3, read=4, send=2)
# Requests that are only noted, with the word for each.
NOTED = {
    api.KeepDigests: "keep digests", api.DropDigests: "drop digests", api.RemoveTagged: "tidy",
    api.EndLeftovers: "end leftovers", api.RemoveBitmap: "remove bitmap", api.PrepareScratch: "scratch",
    api.CancelWork: "stop", api.CloseExport: "close export",
}  # fmt: skip


REMOTE = Host("a", "qemu+ssh://root@a.lan/system", "/scratch")


@dataclass
class World:
    """Both ends of a task: notes every act by a short word, and breaks where it is told to."""

    points: tuple[RestorePoint, ...] = (OLD,)
    breaks: dict[str, UnderstudyError] = field(default_factory=dict)
    broken_once: dict[str, UnderstudyError] = field(default_factory=dict)
    cancel_at: str = ""
    events: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: dict[Step, StepState] = field(default_factory=dict)
    ctx: Context = field(default_factory=Context)
    read: api.ReadSpec | None = None
    meta: PointMeta | None = None
    kept: list[str] = field(default_factory=list)
    checkpoint: str = ""
    free_bytes: int = 10 * GIB
    transport: TransportMode = TransportMode.LOCAL
    vm: Vm = VM
    job: Job = JOB
    host: Host = field(default_factory=lambda: Host("a", "qemu:///a", "/scratch"))
    request: SnapshotRequest | None = None
    asked: set[type] = field(default_factory=set)
    held: list[HeldTask | None] = field(default_factory=list)
    kept_draft: list[bool] = field(default_factory=list)
    reserved: Job | None = None
    becomes: dict[str, Vm] = field(default_factory=dict)
    images: api.ImageFacts = field(default_factory=lambda: api.ImageFacts(True, ()))
    health: tuple[DiskHealth, ...] = ()
    replica_disks: set[str] = field(default_factory=lambda: {"/srv/h"})
    problem: str = ""
    surveys: tuple[DiskSurvey, ...] = ()
    surveyed: api.SurveyDisks | None = None
    exclusions: dict[str, tuple[Exclusion, ...]] = field(default_factory=dict)
    reports: list[DiskReport] = field(default_factory=list)
    mode: SnapshotMode | None = None
    library: Callable[[SnapshotRequest], SourceSnapshot] | None = None

    def act(self, word: str) -> None:
        self.events.append(word)
        if word == self.cancel_at:
            self.ctx.cancel.cancel()
        self.vm = self.becomes.get(word, self.vm)
        if word in self.broken_once:
            raise self.broken_once.pop(word)
        if word in self.breaks:
            raise self.breaks[word]

    def run(self, full_scan: bool = False) -> TaskOutcome:
        return replicate_vm(self.ctx, Task(self.job, "web", "web", 2, full_scan), self.place)

    def resume(self, held: HeldTask) -> TaskOutcome:
        return resume_vm(self.ctx, Task(self.job, "web", "web", 2), self.place, held)

    @property
    def place(self) -> Place:
        return Place(
            source_host=self.host, target_host=Host("b", "qemu:///b", "/scratch"),
            datastore=Datastore("ds", "b", "qcow2", "/srv"), source=cast("SourcePlatform", Source(self)),
            target=cast("TargetPlatform", Target(self)), journal=Rows(self), resources=Slots(self),
            guests=cast("Any", SimpleNamespace(access=lambda _job, _vm: None, login=lambda _job, _vm: None)),
        )  # fmt: skip

    def at(self, word: str) -> int:
        assert word in self.events, self.events
        return self.events.index(word)


class Source:
    def __init__(self, world: World) -> None:
        self._world = world

    def facts(self) -> HostFacts:
        return HostFacts("a", "9.0.0", "7.2.0", 2, GIB, (0, 0))

    def describe_vm(self, name: str) -> Vm:
        return self._world.vm

    def tracking(self, vm: Vm, baseline: Baseline) -> dict[str, Reason]:
        return {"vda": Reason.NONE}

    @contextmanager
    def snapshot(self, ctx: Context, vm: Vm, mode: SnapshotMode, request: SnapshotRequest) -> Iterator[SourceSnapshot]:
        self._world.act("snapshot" if request.incremental else "whole snapshot")
        self._world.mode = mode
        self._world.checkpoint = request.checkpoint
        self._world.request = request
        try:
            if self._world.library is not None:
                yield self._world.library(request)
                return
            baseline = Baseline(request.checkpoint or request.since_name, ("vda",))
            yield SourceSnapshot("2026-01-02T00:00:00.000+00:00", (ServedDisk("vda", "/s", "vda", "dirty"),), baseline)
        finally:
            self._world.act("snapshot ended")

    @contextmanager
    def hold_again(
        self, ctx: Context, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot
    ) -> Iterator[SourceSnapshot]:
        self._world.act("hold again")
        self._world.checkpoint = request.checkpoint
        try:
            yield snapshot
        finally:
            self._world.act("snapshot ended")

    def library_export(self, disk: LibraryDisk) -> LibraryExport:
        self._world.act(f"export since {disk.since or 'never'}")
        login = LibraryLogin("vc.lan", "u", "p", "AB", DiskLibrary("/opt/kit"))
        return LibraryExport(login, disk, pack([Extent(0, MIB)]) if disk.since else None)

    def markers(self, vm: Vm) -> dict[str, str]:
        if self._world.library is not None:
            return {}
        return {"cp-old": "1", self._world.checkpoint: "2"}

    def remove_orphan(self, vm: Vm, name: str, disks: tuple[str, ...]) -> str:
        self._world.act(f"remove orphan {name} of {' '.join(disks)}")
        return ""

    def keep_baseline(self, vm: Vm, tag: Tag, keep: str, former: str) -> list[str]:
        self._world.kept.append(keep)
        self._world.act(f"keep {'old' if keep == 'cp-old' else 'new' if keep else 'none'}")
        return []

    def sweep(self, ctx: Context, vm: Vm, tag: Tag) -> list[str]:
        self._world.act("sweep")
        return []


class Target:
    def __init__(self, world: World) -> None:
        self._world = world

    def facts(self) -> HostFacts:
        if "target facts" in self._world.breaks:
            raise self._world.breaks["target facts"]
        return HostFacts("b", "10.0.0", "8.0.0", 2, GIB, (0, 0))

    def replica_disks(self, uuid: str) -> set[str]:
        return self._world.replica_disks

    def replica_state(self, uuid: str) -> VmState | None:
        return VmState.SHUT_OFF

    def define_replica(self, spec: ReplicaVmSpec) -> list[str]:
        self._world.act("define")
        return []


class Rows:
    def __init__(self, world: World) -> None:
        self._world = world

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        self._world.steps[step] = StepState.FAILED
        yield
        self._world.steps[step] = StepState.SUCCESS

    def step_took(self, step: Step, state: StepState, seconds: float) -> None:
        self._world.steps[step] = state

    def disk(self, report: DiskReport, final: bool) -> None:
        self._world.reports.append(report)

    def warn(self, text: str) -> None:
        self._world.warnings.append(text)

    def waiting(self, reason: str) -> None:
        pass

    def holding(self, held: HeldTask | None) -> None:
        self._world.held.append(held)
        self._world.events.append("hold" if held else "hold nothing")

    def freezing(self, vm_uuid: str, deadline_s: float, frozen: bool) -> None:
        pass

    def guest(self, report: GuestReport) -> None:
        pass


class Slots:
    def __init__(self, world: World) -> None:
        self._world = world

    @contextmanager
    def reserve(self, ctx: Context, job: Job, vm: Vm, disks: Sequence[Disk]) -> Iterator[Lease]:
        self._world.act("reserve")
        self._world.reserved = job
        proxy, end = Proxy("local", "", 2), cast("MoverClient", End(self._world))
        yield Lease(proxy, proxy, end, end, self._world.transport, lambda: "", lambda: None)
        self._world.events.append("released")

    def sending(self, source: Proxy, target: Proxy) -> AbstractContextManager[tuple[str, ...]]:
        raise NotImplementedError("there is one proxy")

    def restarted(self, source: Proxy) -> None:
        raise NotImplementedError("the proxy lives")


class End:
    """The one mover."""

    def __init__(self, world: World) -> None:
        self._world = world

    def call(self, request: object, response_type: type) -> object:  # noqa: C901  (one case per request)
        world = self._world
        world.asked.add(type(request))
        match request:
            case api.CheckDatastore(path=path):
                return api.DatastoreAnswer(DatastoreFacts(path, True, True, 10 * GIB, world.free_bytes))
            case api.InspectReplica():
                if world.problem:
                    return api.ReplicaFacts(None, None, 3, {}, {}, {}, problem=world.problem)
                replica = Replica(IDENTITY, ReplicaState.READY, world.points, OLD.id) if world.points else None
                return api.ReplicaFacts(replica, HeadFacts("p0", True, {"vda": "/srv/h"}), 3, {}, {}, {}, "<domain/>",
                                        world.health)  # fmt: skip
            case api.ProbeImage():
                return self._world.images
            case api.BeginPoint():
                world.act("draft")
                return api.DraftOpened("draft-1", ())
            case api.ReleaseDraft(keep=keep):
                world.kept_draft.append(keep)
                world.act("release draft")
                return api.Nothing()
            case api.ReadExclusions():
                world.act(f"read exclusions {request.point}")
                return api.PointExclusions(world.exclusions[request.point])
            case api.SurveyDisks():
                world.surveyed = request
                world.act("survey")
                return api.WorkStarted("survey")
            case api.WorkQuery(work="survey"):
                error = world.breaks.get("surveying")
                return api.WorkStatus(api.WorkState.FAILED if error else api.WorkState.DONE, 1.0, api.Progress(),
                                      error_fields(error) if error else None, surveyed=world.surveys)
            case api.EstimateTransfer(read=read):
                world.read = read
                world.act("estimate")
                return api.WorkStarted("estimate")
            case api.WorkQuery(work="estimate"):
                error = world.broken_once.pop("estimating", None)
                return api.WorkStatus(api.WorkState.FAILED if error else api.WorkState.DONE, 1.0, api.Progress(),
                                      error_fields(error) if error else None, sums=None if error else SUMS)
            case api.DigestRef():
                return api.DigestHolding(True)
            case api.CopyDisk(read=read):
                world.read = read
                world.act("copy")
                return api.WorkStarted("work-1")
            case api.WorkQuery(work="work-2") if "retiring" not in world.events:
                world.act("retiring")  # so that a wish to cancel would be seen
                return api.WorkStatus(api.WorkState.RUNNING, 0.1, api.Progress())
            case api.WorkQuery():
                error = world.breaks.get("transfer")
                state = api.WorkState.FAILED if error else api.WorkState.DONE
                return api.WorkStatus(state, 1.0, api.Progress(processed=1), error_fields(error) if error else None)
            case api.PublishPoint(meta=meta):
                world.act("publish")
                world.meta = meta
                point = RestorePoint(meta.id, meta.created_at, meta.consistency, meta.session, meta.block_size,
                                     OLD.disks, meta.baseline)  # fmt: skip
                world.points += (point,)
                return api.PublishedPoint(point)
            case api.ProbeLibrary():
                return api.LibraryFacts("1.42", "1.42.3", "8.0.3")
            case api.OpenLibraryExport():
                world.act("open library export")
                return api.OpenedExport("e", api.NbdSource("/s", "", "changed" if request.export.changed else ""))
            case api.About():
                return api.MoverInfo("local", 1, {"understudy": "0.1"})
            case api.BindHead():
                world.act("bind head")
                return api.HeadBound(HeadFacts("p1", True, {"vda": "/srv/h"}), "<domain/>")
            case api.RetirePoints(points=points):
                world.act(f"retire {' '.join(points)}")
                return api.WorkStarted("work-2")
            case _:
                world.act(NOTED[type(request)])
                return api.ScratchFacts(1) if isinstance(request, api.PrepareScratch) else api.Removed(())


def test_the_order_that_never_changes() -> None:
    world = World()
    outcome = world.run()
    order = ["reserve", "sweep", "draft", "snapshot", "copy", "publish", "snapshot ended", "keep new", "bind head",
             "retire p0", "keep digests", "release draft", "released"]  # fmt: skip
    assert [world.events.index(word) for word in order] == sorted(world.at(word) for word in order)
    assert set(world.steps.values()) == {StepState.SUCCESS, StepState.SKIPPED}
    assert list(world.steps) == [step for step in Step if step is not Step.SURVEY]
    assert outcome.consistency == "crash"
    assert world.warnings == []


def test_the_old_baseline_is_kept_until_the_point_is_published_and_only_the_new_one_after() -> None:
    world = World()
    world.run()
    before = [word for word in world.events[: world.at("publish")] if word.startswith("keep ")]
    after = [word for word in world.events[world.at("publish") :] if word in ("keep old", "keep new", "keep none")]
    assert set(before) == {"keep old"}
    assert after
    assert set(after) == {"keep new"}
    assert world.kept[-1] == world.checkpoint


def test_the_point_names_what_the_next_run_starts_from() -> None:
    world = World()
    outcome = world.run()
    assert world.meta is not None
    assert world.meta.baseline == Baseline(world.checkpoint, ("vda",), outcome.point, "2")
    assert (world.meta.id, world.meta.created_at, world.meta.session) == (
        outcome.point, "2026-01-02T00:00:00.000+00:00", 2,
    )  # fmt: skip
    assert world.meta.versions == {
        "libvirt": "9.0.0", "hypervisor": "7.2.0", "target_libvirt": "10.0.0", "target_hypervisor": "8.0.0",
        "source_understudy": "0.1", "target_understudy": "0.1",
    }  # fmt: skip
    assert world.read is not None
    assert (world.read.mode, world.read.base_point, world.read.point) == (TransferMode.INCREMENTAL, "p0", outcome.point)


def test_the_first_run_of_a_vm_reads_everything_and_has_no_baseline_to_keep() -> None:
    world = World(points=())
    world.run()
    assert world.read is not None
    assert (world.read.mode, world.read.chained, world.read.base_point) == (TransferMode.FULL, False, "")
    assert "keep none" in world.events[: world.at("publish")]
    assert not any(word.startswith("retire") for word in world.events)


BEFORE_PUBLISH = {
    "snapshot": PlatformError("snapshot of VM 'web'", "no"),
    "copy": MoverError("proxy", "gone"),
    "transfer": DatastoreError("write disk vda", "no space left"),
    "publish": DatastoreError("publish", "read-only"),
}


@pytest.mark.parametrize("where", BEFORE_PUBLISH)
def test_what_fails_before_the_publish_undoes_everything_and_keeps_the_old_baseline(where: str) -> None:
    world = World(breaks={where: BEFORE_PUBLISH[where]})
    with pytest.raises(type(BEFORE_PUBLISH[where]), match=BEFORE_PUBLISH[where].why):
        world.run()
    assert set(world.kept) == {"cp-old"}
    assert world.events[-1] != "keep new"
    assert "drop digests" in world.events
    assert "release draft" in world.events
    assert not {"keep digests", "bind head", "define"} & set(world.events)
    assert world.points == (OLD,)
    if where != "snapshot":
        assert world.at("snapshot") < world.at("snapshot ended")
        assert world.events[world.at("snapshot ended") :].count("keep old") == 1


def test_a_shortage_of_space_is_an_error_before_anything_is_changed() -> None:
    world = World(points=(), free_bytes=MIB // 2)
    with pytest.raises(DatastoreError, match=r"512 KiB free, 1\.0 MiB needed"):
        world.run()
    assert not {"draft", "snapshot", "whole snapshot"} & set(world.events)


AFTER_PUBLISH = ["snapshot ended", "keep new", "bind head", "retire p0", "keep digests", "release draft"]


@pytest.mark.parametrize("where", AFTER_PUBLISH)
def test_what_fails_after_the_publish_is_a_warning_and_the_point_stands(where: str) -> None:
    world = World(breaks={where: PlatformError(f"do {where}", "no luck")})
    outcome = world.run()
    assert world.points[-1].id == outcome.point
    assert any(f"do {where}: no luck" in warning for warning in world.warnings)
    # One that fails keeps none of the others from being done.
    assert set(AFTER_PUBLISH) <= set(world.events)


def test_an_error_of_the_clean_up_does_not_hide_why_the_task_failed() -> None:
    world = World(breaks={
        "transfer": DatastoreError("write disk vda", "no space left"),
        "snapshot ended": PlatformError("end the snapshot", "stuck"),
        "drop digests": MoverError("proxy", "gone"),
        "release draft": MoverError("proxy", "gone as well"),
    })  # fmt: skip
    with pytest.raises(DatastoreError, match="no space left"):
        world.run()
    for text in ("end the snapshot: stuck", "proxy: gone", "gone as well"):
        assert any(text in warning for warning in world.warnings)


@pytest.mark.parametrize("moment", ["draft", "snapshot", "copy"])
def test_a_cancellation_before_the_publish_makes_no_point(moment: str) -> None:
    world = World(cancel_at=moment)
    with pytest.raises(Cancelled):
        world.run()
    assert "publish" not in world.events
    assert set(world.kept) == {"cp-old"}
    assert ("snapshot ended" in world.events) == (moment != "draft")


def test_a_cancellation_after_the_publish_comes_too_late_and_everything_is_finished() -> None:
    world = World(cancel_at="publish")
    world.run()
    assert set(AFTER_PUBLISH) <= set(world.events)
    assert "stop" not in world.events
    assert world.warnings == []


def test_a_replica_that_lost_its_record_is_not_replicated_anew_and_it_is_said_what_to_run() -> None:
    world = World(problem="replica.json is lost, 5 files of restore points are there (vda-p0.qcow2)")
    with pytest.raises(ReplicaError, match=r"is lost, 5 files .*; run 'understudy replica rebuild ds/web_replica'"):
        world.run()
    assert not {"draft", "snapshot", "publish"} & set(world.events)


def test_a_replica_vm_that_was_defined_by_hand_on_a_layer_makes_that_disk_suspect_and_is_put_back_on_the_head() -> None:
    world = World(replica_disks={"/srv/web_replica/layers/a.qcow2"})
    world.run()
    assert world.read is not None
    assert (world.read.mode, world.read.chained) == (TransferMode.FULL, False)
    assert any("was defined by hand on layer a.qcow2" in warning for warning in world.warnings)
    assert "define" in world.events


def test_a_replica_vm_whose_disks_lie_elsewhere_is_defined_again() -> None:
    world = World()
    world.run()
    assert "define" not in world.events
    world = World(replica_disks={"/before/h"})
    world.run()
    assert "define" in world.events
    assert world.warnings == []


def test_refused_tracking_is_a_scan_with_its_reason_and_not_a_failure() -> None:
    world = World(breaks={"snapshot": TrackingLost("snapshot", "bitmap is inconsistent")})
    world.run()
    assert world.read is not None
    assert world.read.mode is TransferMode.DIGEST_SCAN
    assert world.at("snapshot") < world.at("whole snapshot") < world.at("copy")


def test_a_forced_scan_asks_for_the_dirty_map_to_see_what_it_conceals() -> None:
    world = World()
    world.run(full_scan=True)
    assert world.request is not None
    assert world.request.incremental == ("vda",)
    assert world.read is not None
    assert world.read.mode is TransferMode.DIGEST_SCAN
    assert world.read.source.dirty_context == "dirty"


@pytest.mark.parametrize("change", [{"baseline": None}, {"tracked": False}])
def test_a_forced_scan_without_tracking_asks_for_no_dirty_map(change: dict[str, Any]) -> None:
    world = World()
    if "tracked" in change:
        world.vm = replace(VM, disks=(replace(DISK, **change),))
    else:
        world.points = (replace(OLD, **change),)
    world.run(full_scan=True)
    assert world.request is not None
    assert world.request.incremental == ()


def test_a_forced_scan_does_without_a_dirty_map_that_is_refused() -> None:
    world = World(breaks={"snapshot": TrackingLost("snapshot", "bitmap is inconsistent")})
    world.run(full_scan=True)
    assert world.held[0] is not None
    assert world.held[0].plans[0].reason is Reason.FORCED
    assert world.at("snapshot") < world.at("whole snapshot") < world.at("copy")


ON = replace(VM, run="1")
OFF = replace(VM, state=VmState.SHUT_OFF)
ENDED = TransferError("read disk vda", "the NBD server closed the connection")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a platform that takes its time."""
    monkeypatch.setattr(power, "NOTICED_S", 0.0)
    monkeypatch.setattr(power, "RESTARTED_S", 0.0)


@pytest.mark.parametrize(
    ("after", "told"), [(OFF, "it was powered off"), (replace(VM, run="2"), "it was restarted")]
)
@pytest.mark.parametrize("where", ["whole snapshot", "copy"])
def test_a_vm_that_goes_away_while_it_is_replicated_is_planned_anew_once(where: str, after: Vm, told: str) -> None:
    world = World(points=(), vm=ON, becomes={where: after}, broken_once={where: ENDED})
    outcome = world.run()
    assert world.points[-1].id == outcome.point
    assert [warning for warning in world.warnings if "planned anew" in warning] == [
        f"VM 'web' was planned anew, because {told} while it was replicated ({ENDED})"
    ]
    assert world.events.count("reserve") == 2
    assert world.request is not None
    assert bool(world.request.checkpoint) == (after is not OFF)


def test_a_vm_that_goes_away_again_fails_the_task() -> None:
    world = World(vm=ON, becomes={"copy": OFF}, breaks={"copy": ENDED})
    with pytest.raises(TransferError):
        world.run()
    assert world.events.count("copy") == 2


@pytest.mark.parametrize("before", [ON, OFF])
def test_a_failure_of_a_vm_that_was_or_stayed_what_it_is_is_final(before: Vm) -> None:
    world = World(vm=before, breaks={"copy": ENDED})
    with pytest.raises(TransferError):
        world.run()
    assert world.events.count("copy") == 1
    assert world.warnings == []


def test_what_the_target_refuses_is_not_tried_again_because_the_vm_went_off() -> None:
    world = World(vm=ON, becomes={"copy": OFF}, breaks={"copy": DatastoreError("write disk vda", "no space left")})
    with pytest.raises(DatastoreError):
        world.run()
    assert world.events.count("copy") == 1


def test_a_bitmap_that_no_checkpoint_names_is_removed_and_never_the_baseline_or_that_of_others() -> None:
    prefix = Tag(JOB.id, VM.uuid, 1).prefix
    foreign = ("cp-old", "other-tool", Tag("f" * 16, VM.uuid, 1).prefix + "1-ab")
    orphan = f"{prefix}1-aa"
    for vm, done in ((ON, f"remove orphan {orphan} of vda"), (OFF, "remove bitmap")):
        world = World(vm=vm, images=api.ImageFacts(True, foreign, (orphan,)))
        world.run()
        assert [word for word in world.events if word.startswith("remove")] == [done]
        assert any(f"removed bitmap {orphan}" in warning for warning in world.warnings)


def test_a_bitmap_that_cannot_be_removed_is_told_with_the_command() -> None:
    orphan = f"{Tag(JOB.id, VM.uuid, 1).prefix}1-aa"
    world = World(vm=OFF, images=api.ImageFacts(True, ("cp-old", orphan)),
                  breaks={"remove bitmap": PlatformError("remove bitmap", "in use")})  # fmt: skip
    world.run()
    assert any(f"run, while the VM is off: qemu-img bitmap --remove {DISK.path} {orphan}" in warning
               for warning in world.warnings)  # fmt: skip


def test_the_point_of_a_vm_that_is_off_names_the_point_where_its_tracking_began() -> None:
    began = replace(OLD, baseline=Baseline("cp-old", ("vda",), "p0", "1"))
    world = World(points=(began,), vm=OFF, images=api.ImageFacts(True, ("cp-old",), (), FileMark(1, 2, 3, 4)))
    world.run()
    assert world.meta is not None
    assert world.meta.baseline == Baseline("cp-old", ("vda",), "p0", "1")
    assert world.meta.generation == SourceGeneration((ImageGeneration("vda", FileMark(1, 2, 3, 4), ("cp-old",)),))
    assert world.read is not None
    assert (world.read.mode, world.read.since_point) == (TransferMode.INCREMENTAL, "")
    world.run()
    assert world.meta.baseline == Baseline("cp-old", ("vda",), "p0", "1")
    assert (world.read.mode, world.read.since_point) == (TransferMode.INCREMENTAL, "p0")


def test_damaged_blocks_of_the_newest_point_are_read_from_the_source_and_the_operator_hears_of_it() -> None:
    bad, noon = (Extent(3 * MIB, 2 * MIB),), "2026-01-01T12:00:00.000+00:00"
    world = World(health=(
        DiskHealth(OLD.id, "vda", bad=bad, bad_blocks=2, found_at=noon),
        DiskHealth("older", "vda", bad=(Extent(0, MIB),), bad_blocks=1, found_at=noon),
    ))  # fmt: skip
    world.run()
    assert world.read is not None
    assert (world.read.mode, world.read.suspect) == (TransferMode.INCREMENTAL, bad)
    assert world.warnings == [
        f"2 damaged blocks of disk vda, found by verify at {noon}, are repaired from the source"
    ]


def test_a_problem_without_bad_blocks_repairs_nothing() -> None:
    world = World(health=(DiskHealth(OLD.id, "vda", problem="digest file is damaged"),))
    world.run()
    assert world.read is not None
    assert world.read.suspect == ()
    assert world.warnings == []


FILES = (api.PrepareScratch, api.ProbeImage, api.RemoveTagged, api.ReadNvram, api.OpenExport)


def network(vm: Vm = VM, job: Job = JOB, host: Host = REMOTE) -> World:
    return World(transport=TransportMode.NETWORK, vm=vm, job=job, host=host)


def test_over_the_network_nobody_touches_files_of_the_source_host() -> None:
    world = network()
    world.run()
    assert api.CopyDisk in world.asked
    assert not set(FILES) & world.asked
    assert world.request is not None
    assert world.request.serve_at == "a.lan"
    assert world.read is not None
    assert world.read.mode is TransferMode.INCREMENTAL


def test_on_the_host_itself_nothing_is_served_to_others() -> None:
    world = World(host=REMOTE)
    world.run()
    assert world.request is not None
    assert world.request.serve_at == ""
    assert {"scratch", "tidy"} <= set(world.events)


def test_the_address_of_a_host_is_what_the_operator_says() -> None:
    world = network(host=replace(REMOTE, nbd_address="10.0.0.7"))
    world.run()
    assert world.request is not None
    assert world.request.serve_at == "10.0.0.7"


@pytest.mark.parametrize(
    ("world", "obstacle"),
    [
        (network(replace(VM, state=VmState.SHUT_OFF)), "powered off"),
        (network(replace(VM, nvram="/nvram/web.fd")), "UEFI variables"),
        (network(replace(VM, disks=(replace(DISK, path="/dev/vg0/web"),))), "disk vda is a block device"),
        (network(job=replace(JOB, snapshot_mode=SnapshotMode.EXTERNAL)), "snapshot mode external"),
        (network(host=Host("a", "qemu:///system", "/scratch")), "host a has no address of its own"),
    ],
)
def test_what_the_network_cannot_do_is_refused_before_anything_is_done(world: World, obstacle: str) -> None:
    with pytest.raises(Refused, match=f"over the network: .*{obstacle}.*; enrol a proxy on host a"):
        world.run()
    assert not {"sweep", "draft", "snapshot", "whole snapshot"} & set(world.events)
