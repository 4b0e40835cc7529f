"""Transfers of all disks of a VM: how many at once, which error is told, and that nothing goes on after one failed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, MoverError, TransferError, UnderstudyError
from understudy.model.job import Job
from understudy.model.session import DiskReport
from understudy.model.snapshot import ImageDisk, ServedDisk, SourceSnapshot
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.mover.work import error_fields
from understudy.replication.site import Site
from understudy.replication.transfer import Transferred, TransferSpec, copy_disks, send_seconds

pytestmark = pytest.mark.timeout(60)

LOST = TransferError("receive disk", "connection lost")
SPEC = TransferSpec(Job("1", "nightly", "a", "b", "ds", ("web",)), "replica-1", "p0", "p1")


def running(**progress: Any) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.RUNNING, 0.1, api.Progress(**progress))


def done(**progress: Any) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.DONE, 2.0004, api.Progress(**progress))


def failed(error: UnderstudyError) -> api.WorkStatus:
    return api.WorkStatus(api.WorkState.FAILED, 1.0, api.Progress(), error_fields(error))


@dataclass
class Mover:
    """Answers by script: the statuses of a disk's work one after the other, the last one again and again."""

    name: str
    scripts: dict[str, list[api.WorkStatus]] = field(default_factory=dict)
    problems: dict[type, UnderstudyError] = field(default_factory=dict)
    requests: list[object] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    most_active: int = 0

    def call(self, request: object, response_type: type) -> object:
        self.requests.append(request)
        if type(request) in self.problems:
            raise self.problems[type(request)]
        match request:
            case api.CopyDisk(read=read) | api.SendDisk(read=read):
                return api.WorkStarted(self.begin(read.disk))
            case api.ReceiveDisk(disk=disk):
                return api.ReceiveStarted(self.begin(disk), f"/run/{disk}.rx", f"ticket-{disk}")
            case api.WorkQuery(work=work):
                return self.status(work)
            case api.CancelWork(work=work):
                self.active.discard(work)
                return api.Nothing()
            case api.OpenExport(tag=tag):
                return api.OpenedExport(f"export-{tag}", api.NbdSource(f"/run/{tag}.nbd", "x", ""))
            case _:
                return api.Nothing()

    def begin(self, disk: str) -> str:
        work = f"{self.name}-{disk}"
        self.active.add(work)
        self.most_active = max(self.most_active, len(self.active))
        return work

    def status(self, work: str) -> api.WorkStatus:
        script = self.scripts.setdefault(work.rpartition("-")[2], [done()])
        status = script.pop(0) if len(script) > 1 else script[0]
        if status.state is not api.WorkState.RUNNING:
            self.active.discard(work)
        return status

    def of(self, kind: type) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


@dataclass
class Journal:
    reports: list[tuple[DiskReport, bool]] = field(default_factory=list)

    def disk(self, report: DiskReport, final: bool) -> None:
        self.reports.append((report, final))


@dataclass
class Ends:
    """The two ends of a task, as far as transfers need them."""

    source_mover: Mover
    target_mover: Mover
    same_mover: bool
    journal: Journal = field(default_factory=Journal)


def one_end(**scripts: list[api.WorkStatus]) -> Ends:
    mover = Mover("local", dict(scripts))
    return Ends(mover, mover, same_mover=True)


def two_ends(near: dict[str, list[api.WorkStatus]], far: dict[str, list[api.WorkStatus]]) -> Ends:
    return Ends(Mover("near", near), Mover("far", far), same_mover=False)


def plan(name: str, chained: bool = True) -> DiskPlan:
    mode = TransferMode.DIGEST_SCAN if chained else TransferMode.FULL
    return DiskPlan(name, 1000, mode, Reason.FORCED if chained else Reason.FIRST_RUN, chained)


def copy(ends: Ends, *names: str, parallel: int = 8, ctx: Context | None = None) -> tuple[Transferred, ...]:
    served = tuple(ServedDisk(name, "/run/backup.sock", name, f"dirty-{name}") for name in names)
    snapshot = SourceSnapshot("2026-01-01T00:00:00.000+00:00", served, None)
    site = cast("Site", ends)
    return copy_disks(ctx or Context(), site, SPEC, "draft-1", snapshot, [plan(name) for name in names], parallel)


def test_every_disk_is_copied_and_told_with_what_was_done() -> None:
    status = done(read=5, sent=4, wire=3, zero=2, processed=1000, busy={"source": 1.0, "target": 3.0})
    ends = one_end(vda=[running(processed=10), status])
    reports = {item.report.name: item.report for item in copy(ends, "vda", "vdb")}
    assert set(reports) == {"vda", "vdb"}
    vda = reports["vda"]
    assert (vda.read_bytes, vda.sent_bytes, vda.wire_bytes, vda.zero_bytes, vda.processed_bytes) == (5, 4, 3, 2, 1000)
    assert (vda.mode, vda.reason, vda.size) == (TransferMode.DIGEST_SCAN, Reason.FORCED, 1000)
    assert (vda.seconds, vda.bottleneck) == (2.0, "target")
    assert [final for report, final in ends.journal.reports if report.name == "vda"] == [False, True]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
def test_no_more_disks_than_leased_are_under_way_at_once(disks: int, parallel: int, polls: int) -> None:
    names = [f"vd{letter}" for letter in "abcdef"[:disks]]
    ends = one_end(**{name: [running()] * polls + [done()] for name in names})
    assert len(copy(ends, *names, parallel=parallel)) == disks
    assert ends.source_mover.most_active == min(disks, parallel)


def test_both_ends_of_a_wire_are_told_the_same_disk_and_ticket() -> None:
    ends = two_ends({}, {})
    copy(ends, "vda")
    (receive,), (send,) = ends.target_mover.of(api.ReceiveDisk), ends.source_mover.of(api.SendDisk)
    assert (receive.draft, receive.disk, receive.size) == ("draft-1", "vda", 1000)
    assert (send.socket, send.ticket, send.compression) == ("/run/vda.rx", "ticket-vda", SPEC.job.compression)
    assert (send.read.base_point, send.read.point, send.read.chained) == ("p0", "p1", True)
    assert send.read.source == api.NbdSource("/run/backup.sock", "vda", "dirty-vda")


def test_a_disk_ends_when_both_of_its_ends_have() -> None:
    far = [running(), running(), done(busy={"network": 0.5})]
    ends = two_ends({"vda": [done(busy={"network": 2.0})]}, {"vda": far})
    (report,) = copy(ends, "vda")
    assert len(ends.target_mover.of(api.WorkQuery)) == 3
    assert report.busy == {"network": 2.5}
    assert send_seconds([report, report]) == 5.0
    # The source end was done: it is the target end that is waited for, not asked without a pause.
    assert all(query.wait_s > 0 for query in ends.target_mover.of(api.WorkQuery))


def test_a_stand_alone_layer_is_compared_with_no_base() -> None:
    ends = one_end()
    snapshot = SourceSnapshot("t", (ServedDisk("vda", "/s", "vda", ""),), None)
    copy_disks(Context(), cast("Site", ends), SPEC, "d", snapshot, [plan("vda", chained=False)], 1)
    (copied,) = ends.source_mover.of(api.CopyDisk)
    assert (copied.read.base_point, copied.read.chained) == ("", False)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_one_failed_disk_stops_all_others_and_starts_no_more() -> None:
    full = DatastoreError("write disk vdb", "no space left", "free some")
    ends = one_end(vda=[running()], vdb=[running(), failed(full)])
    with pytest.raises(DatastoreError, match="write disk vdb: no space left; free some"):
        copy(ends, "vda", "vdb", "vdc", parallel=2)
    assert "local-vda" in {request.work for request in ends.source_mover.of(api.CancelWork)}
    assert {request.read.disk for request in ends.source_mover.of(api.CopyDisk)} == {"vda", "vdb"}
    assert ends.source_mover.active == set()


FULL = DatastoreError("write disk vda", "no space left")


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ([failed(LOST)], [failed(FULL)]),
        ([failed(LOST)], [running(), failed(FULL)]),
        ([running(), failed(LOST)], [failed(FULL)]),
        ([failed(FULL)], [failed(LOST)]),
        ([running(), failed(FULL)], [failed(LOST)]),
    ],
    ids=["both at once", "target a moment later", "target first", "source", "source a moment later"],
)
def test_the_cause_is_told_and_not_that_the_other_end_was_lost(
    near: list[api.WorkStatus], far: list[api.WorkStatus]
) -> None:
    ends = two_ends({"vda": near}, {"vda": far})
    with pytest.raises(DatastoreError, match="no space left"):
        copy(ends, "vda")


def test_two_ends_that_only_lost_each_other_say_so() -> None:
    ends = two_ends({"vda": [failed(TransferError("send disk", "link cut"))]}, {"vda": [failed(LOST)]})
    with pytest.raises(TransferError, match="send disk: link cut"):
        copy(ends, "vda")


def test_an_end_that_says_nothing_more_does_not_hold_up_the_error() -> None:
    ends = two_ends({"vda": [failed(TransferError("send disk", "read error"))]}, {"vda": [running()]})
    with pytest.raises(TransferError, match="send disk: read error"):
        copy(ends, "vda")
    assert ends.target_mover.active == set()
    assert len(ends.target_mover.of(api.WorkQuery)) == 2


def test_a_cancellation_stops_both_ends() -> None:
    ends = two_ends({"vda": [running()]}, {"vda": [running()]})
    ctx = Context()
    ctx.cancel.cancel()
    with pytest.raises(Cancelled):
        copy(ends, "vda", ctx=ctx)
    assert [request.work for request in ends.source_mover.of(api.CancelWork)] == ["near-vda"]
    assert [request.work for request in ends.target_mover.of(api.CancelWork)] == ["far-vda"]


def test_a_source_that_refuses_leaves_no_target_that_waits_for_it() -> None:
    ends = two_ends({}, {})
    ends.source_mover.problems[api.SendDisk] = MoverError("proxy", "gone")
    with pytest.raises(MoverError, match="proxy: gone"):
        copy(ends, "vda")
    assert [request.work for request in ends.target_mover.of(api.CancelWork)] == ["far-vda"]


def test_a_mover_that_is_gone_does_not_hide_why_the_transfer_ended() -> None:
    ends = two_ends({"vda": [failed(FULL)]}, {"vda": [running()]})
    ends.source_mover.problems[api.CancelWork] = MoverError("proxy", "gone")
    with pytest.raises(DatastoreError):
        copy(ends, "vda")
    assert ends.target_mover.active == set()


# --- images that lie still --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [[done()], [failed(FULL)]], ids=["success", "failure"])
def test_exports_of_images_are_closed_whatever_happens(script: list[api.WorkStatus]) -> None:
    ends = one_end(vda=script)
    images = (ImageDisk("vda", "/images/a", "qcow2", "cp"), ImageDisk("vdb", "/images/b", "raw", ""))
    snapshot, plans = SourceSnapshot("t", images, None), [plan("vda"), plan("vdb")]
    with contextlib.suppress(DatastoreError):
        copy_disks(Context(), cast("Site", ends), SPEC, "d", snapshot, plans, 2)
    opened = ends.source_mover.of(api.OpenExport)
    assert [(item.image, item.image_format, item.bitmap) for item in opened] == [
        ("/images/a", "qcow2", "cp"), ("/images/b", "raw", ""),
    ]  # fmt: skip
    assert {item.id for item in ends.source_mover.of(api.CloseExport)} == {f"export-p1-{n}" for n in ("vda", "vdb")}


def test_an_export_that_cannot_be_opened_closes_the_ones_before_it() -> None:
    ends = one_end()
    answer = ends.source_mover.call

    def refuse_second(request: object, response_type: type) -> object:
        if isinstance(request, api.OpenExport) and request.image == "/images/b":
            raise TransferError("open /images/b", "locked")
        return answer(request, response_type)

    ends.source_mover.call = refuse_second  # type: ignore[method-assign]
    images = (ImageDisk("vda", "/images/a", "qcow2", ""), ImageDisk("vdb", "/images/b", "raw", ""))
    with pytest.raises(TransferError):
        copy_disks(Context(), cast("Site", ends), SPEC, "d", SourceSnapshot("t", images, None), [plan("vda")], 1)
    assert [item.id for item in ends.source_mover.of(api.CloseExport)] == ["export-p1-vda"]


def test_waiting_for_progress_is_left_to_the_mover() -> None:
    ends = one_end(vda=[running()] * 5 + [done()])
    started = time.monotonic()
    copy(ends, "vda", "vdb")
    waits = [query.wait_s for query in ends.source_mover.of(api.WorkQuery)]
    assert all(0 < wait <= 0.1 for wait in waits)
    assert time.monotonic() - started < 5
