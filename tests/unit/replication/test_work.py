"""Long operations of a mover, and digests of the base: followed to their end, told with their own error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.errors import Cancelled, MoverError, NotFound, ReplicaError, TransferError, UnderstudyError
from understudy.model.job import Job, Proxy
from understudy.model.session import DiskReport
from understudy.model.transfer import DiskPlan, Reason, TransferMode, TransportMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.work import error_fields
from understudy.replication import base_digests
from understudy.replication.base_digests import provide_base_digests
from understudy.replication.held import TransferSpec
from understudy.replication.site import Site
from understudy.replication.work import finish

REF = api.ReplicaRef("qcow2", "/srv", "web_replica")
REQUEST = api.VerifyPoint(REF, "p1")
SPEC = TransferSpec(Job("1", "nightly", "a", "b", "ds", ("web",)), "replica-1", "p0", "p1")


def status(state: api.WorkState, processed: int = 0, error: UnderstudyError | None = None) -> api.WorkStatus:
    return api.WorkStatus(state, 1.0, api.Progress(processed=processed), error_fields(error) if error else None)


@dataclass
class Mover:
    """Answers queries one after the other; an error among them is raised."""

    answers: list[api.WorkStatus | UnderstudyError] = field(default_factory=list)
    cancel_problem: UnderstudyError | None = None
    holds: bool = False
    held_points: tuple[str, ...] = ()
    copies: list[UnderstudyError | None] = field(default_factory=list)
    requests: list[object] = field(default_factory=list)

    def call(self, request: object, response_type: type) -> object:
        self.requests.append(request)
        match request:
            case api.WorkQuery():
                answer = self.answers.pop(0) if self.answers else status(api.WorkState.DONE)
                if isinstance(answer, UnderstudyError):
                    raise answer
                return answer
            case api.CancelWork():
                if self.cancel_problem is not None:
                    raise self.cancel_problem
                return api.Nothing()
            case api.DigestRef(point=point):
                return api.DigestHolding(self.holds or point in self.held_points)
            case _:
                return api.WorkStarted("work-1")

    def copy_digests_to(
        self, ref: api.ReplicaRef, digests: api.DigestRef, other: object, on_progress: Callable[[int, int], None]
    ) -> None:
        self.requests.append(("copy", ref, digests, other))
        on_progress(1, 4)
        problem = self.copies.pop(0) if self.copies else None
        if problem is not None:
            raise problem


def client(mover: Mover) -> MoverClient:
    return cast("MoverClient", mover)


def test_an_operation_is_followed_to_its_end_with_its_progress() -> None:
    last = status(api.WorkState.DONE, 100)
    mover = Mover([status(api.WorkState.RUNNING, 10), status(api.WorkState.RUNNING, 50), last])
    seen: list[int] = []
    assert finish(Context(), client(mover), REQUEST, lambda progress: seen.append(progress.processed)) is last
    assert seen == [10, 50, 100]
    assert mover.requests[0] is REQUEST
    assert api.CancelWork("work-1") not in mover.requests


def test_a_failed_operation_raises_its_own_error() -> None:
    mover = Mover([status(api.WorkState.FAILED, error=TransferError("read a", "broken", "look at it"))])
    with pytest.raises(TransferError, match="read a: broken; look at it"):
        finish(Context(), client(mover), REQUEST)
    assert api.CancelWork("work-1") not in mover.requests


def test_a_cancellation_stops_the_operation() -> None:
    ctx = Context()
    ctx.cancel.cancel()
    mover = Mover([status(api.WorkState.RUNNING)] * 3)
    with pytest.raises(Cancelled):
        finish(ctx, client(mover), REQUEST)
    assert mover.requests[-1] == api.CancelWork("work-1")


def test_an_operation_that_ended_counts_although_the_operator_cancelled_meanwhile() -> None:
    ctx = Context()
    ctx.cancel.cancel()
    assert finish(ctx, client(Mover([status(api.WorkState.DONE)])), REQUEST).state is api.WorkState.DONE


@pytest.mark.parametrize("problem", [Cancelled(), MoverError("ask for progress", "reset")], ids=["cancelled", "lost"])
def test_a_mover_that_cannot_even_stop_does_not_hide_why_it_was_to(problem: UnderstudyError) -> None:
    mover = Mover([problem], cancel_problem=MoverError("cancel", "connection refused"))
    with pytest.raises(type(problem), match=str(problem)):
        finish(Context(), client(mover), REQUEST)
    assert mover.requests[-1] == api.CancelWork("work-1")


# --- digests of the base point ----------------------------------------------------------------------------------------


@dataclass
class Journal:
    texts: list[str] = field(default_factory=list)
    waits: list[tuple[str, str]] = field(default_factory=list)

    def disk(self, report: DiskReport, final: bool) -> None:
        assert (report.processed_bytes, report.size) == (0, 1)
        assert final or report.waiting
        self.waits.append((report.name, report.waiting))

    def warn(self, text: str) -> None:
        self.texts.append(text)


@dataclass
class Ends:
    source_mover: Mover
    target_mover: Mover
    journal: Journal = field(default_factory=Journal)
    source_proxy: Proxy = field(default_factory=lambda: Proxy("near", "", 8))
    transport: TransportMode = TransportMode.LOCAL
    plans: tuple[DiskPlan, ...] = ()


def plan(name: str, mode: TransferMode) -> DiskPlan:
    return DiskPlan(name, 1, mode, Reason.NONE, mode is not TransferMode.FULL)


SCAN = plan("vda", TransferMode.DIGEST_SCAN)
WANTED = api.DigestRef("replica-1", "vda", "p0")
DAMAGED = ReplicaError("digest file x", "checksum does not match")


def provide(source: Mover, target: Mover, *plans: DiskPlan) -> Ends:
    ends = Ends(source, target)
    ends.plans = provide_base_digests(Context(), cast("Site", ends), REF, SPEC, plans)
    return ends


def kinds(mover: Mover) -> list[str]:
    return [request[0] if isinstance(request, tuple) else type(request).__name__ for request in mover.requests]


def test_digests_that_the_source_side_holds_are_used() -> None:
    ends = provide(Mover(holds=True), Mover(), SCAN, plan("vdb", TransferMode.INCREMENTAL))
    assert ends.source_mover.requests == [WANTED, api.DigestRef("replica-1", "vdb", "p0")]
    assert ends.target_mover.requests == []


def test_a_full_transfer_needs_no_digests() -> None:
    ends = provide(Mover(), Mover(), plan("vda", TransferMode.FULL))
    assert ends.source_mover.requests == []


def test_lost_digests_are_copied_from_the_target() -> None:
    ends = provide(Mover(), Mover(), SCAN)
    assert ends.target_mover.requests == [("copy", REF, WANTED, ends.source_mover)]
    assert ends.journal.texts == []


def test_digests_that_are_lost_on_both_sides_are_recomputed_and_that_is_said() -> None:
    ends = provide(Mover(), Mover(copies=[DAMAGED]), SCAN)
    assert kinds(ends.target_mover) == ["copy", "RebuildDigests", "WorkQuery", "copy"]
    rebuild: Any = ends.target_mover.requests[1]
    assert (rebuild.ref, rebuild.point, rebuild.disk) == (REF, "p0", "vda")
    (warning,) = ends.journal.texts
    assert "digests of disk vda at point p0 were lost on both sides" in warning
    assert "checksum does not match" in warning


def test_digests_that_stay_damaged_end_the_task() -> None:
    with pytest.raises(ReplicaError):
        provide(Mover(), Mover(copies=[DAMAGED, DAMAGED]), SCAN)


def test_a_target_that_does_not_answer_is_not_taken_for_lost_digests() -> None:
    target = Mover(copies=[MoverError("proxy", "gone")])
    with pytest.raises(MoverError):
        provide(Mover(), target, SCAN)
    assert kinds(target) == ["copy"]


# --- how far the passes over digests are ------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is three seconds after the one before."""
    seconds = itertools.count(0.0, 3.0)
    monkeypatch.setattr(base_digests, "time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.mark.usefixtures("clock")
def test_copying_digests_says_why_and_how_long_it_takes() -> None:
    ends = provide(Mover(), Mover(), SCAN)
    why = "proxy 'near' has no digests of point p0: copying them from the target"
    assert ends.journal.waits == [("vda", why), ("vda", f"{why}, 25 %, 9.0 s left"), ("vda", "")]


@pytest.mark.usefixtures("clock")
def test_recomputing_digests_says_why_and_how_long_it_takes() -> None:
    target = Mover([progress(0, 0), progress(10, 40), progress(40, 40, api.WorkState.DONE)], copies=[DAMAGED])
    ends = provide(Mover(), target, SCAN)
    why = "digests of point p0 were lost on both sides: recomputing them from the replica"
    told = [text for _, text in ends.journal.waits if text.startswith("digests")]
    assert told == [why, why, f"{why}, 25 %, 18 s left", f"{why}, 100 %, 0.0 s left"]
    assert ends.journal.waits[-1] == ("vda", "")


def progress(done: int, whole: int, state: api.WorkState = api.WorkState.RUNNING) -> api.WorkStatus:
    return api.WorkStatus(state, 1.0, api.Progress(total=whole, processed=done))


def test_a_pass_that_fails_does_not_wait_any_more() -> None:
    target = Mover(copies=[MoverError("proxy", "gone")])
    ends = Ends(Mover(), target)
    with pytest.raises(MoverError):
        provide_base_digests(Context(), cast("Site", ends), REF, SPEC, [SCAN])
    assert ends.journal.waits[-1] == ("vda", "")


# --- the point since which changes are tracked ------------------------------------------------------------------------

TRACKED = replace(plan("vda", TransferMode.INCREMENTAL), since_point="p-1")


def test_both_points_of_a_disk_that_is_tracked_since_an_older_one_are_provided() -> None:
    ends = provide(Mover(held_points=("p0",)), Mover(), TRACKED)
    older = api.DigestRef("replica-1", "vda", "p-1")
    assert ends.source_mover.requests == [WANTED, older]
    assert ends.target_mover.requests == [("copy", REF, older, ends.source_mover)]
    assert ends.plans == (TRACKED,)


@pytest.mark.parametrize("problem", [DAMAGED, NotFound("restore point 'p-1'", "no such restore point")])
def test_a_disk_is_scanned_if_the_digests_of_the_older_point_are_gone(problem: UnderstudyError) -> None:
    other = plan("vdb", TransferMode.INCREMENTAL)
    ends = provide(Mover(held_points=("p0",)), Mover(copies=[problem]), TRACKED, other)
    assert [(item.name, item.mode, item.reason) for item in ends.plans] == [
        ("vda", TransferMode.DIGEST_SCAN, Reason.NO_BASELINE), ("vdb", TransferMode.INCREMENTAL, Reason.NONE),
    ]  # fmt: skip
    (warning,) = ends.journal.texts
    assert "tracked since point p-1, whose digests are lost" in warning
    assert kinds(ends.target_mover) == ["copy"]


def test_an_older_point_matters_to_incremental_disks_alone() -> None:
    ends = provide(Mover(holds=True), Mover(), replace(SCAN, since_point="p-1"), replace(TRACKED, since_point="p0"))
    assert ends.source_mover.requests == [WANTED, WANTED]
