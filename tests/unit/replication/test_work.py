"""Long operations of a mover, and digests of the base: followed to their end, told with their own error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from understudy.context import Context
from understudy.errors import Cancelled, MoverError, ReplicaError, TransferError, UnderstudyError
from understudy.model.job import Job
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.work import error_fields
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
            case api.DigestRef():
                return api.DigestHolding(self.holds)
            case _:
                return api.WorkStarted("work-1")

    def copy_digests_to(self, ref: api.ReplicaRef, digests: api.DigestRef, other: object) -> None:
        self.requests.append(("copy", ref, digests, other))
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
class Warnings:
    texts: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.texts.append(text)


@dataclass
class Ends:
    source_mover: Mover
    target_mover: Mover
    journal: Warnings = field(default_factory=Warnings)


def plan(name: str, mode: TransferMode) -> DiskPlan:
    return DiskPlan(name, 1, mode, Reason.NONE, mode is not TransferMode.FULL)


SCAN = plan("vda", TransferMode.DIGEST_SCAN)
WANTED = api.DigestRef("replica-1", "vda", "p0")
DAMAGED = ReplicaError("digest file x", "checksum does not match")


def provide(source: Mover, target: Mover, *plans: DiskPlan) -> Ends:
    ends = Ends(source, target)
    provide_base_digests(Context(), cast("Site", ends), REF, SPEC, plans)
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
