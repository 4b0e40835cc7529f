"""Transfers of all disks of a VM: how many at once, which error is told, and that nothing goes on after one failed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.replication.ends import (
    SPEC,
    TAG,
    Copy,
    copy,
    done,
    failed,
    one_end,
    plan,
    running,
    two_ends,
)
from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, MoverError, TransferError
from understudy.model.snapshot import ImageDisk
from understudy.model.transfer import Reason, TransferMode
from understudy.mover import api
from understudy.replication.transfer import send_seconds

pytestmark = pytest.mark.timeout(60)

LOST = TransferError("receive disk", "connection lost")


def test_every_disk_is_copied_and_told_with_what_was_done() -> None:
    status = done(read=5, sent=4, wire=3, zero=2, processed=1000, busy={"source": 1.0, "target": 3.0})
    ends = one_end(vda=[running(processed=10), status])
    reports = {item.name: item for item in copy(ends, "vda", "vdb")}
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
    assert (receive.block_size, receive.source_identity, receive.patience_s) == (SPEC.job.block_size, "", 1800)
    assert send.target == api.TargetAddress("/run/vda.rx", "", "ticket-far-vda")
    assert (send.connections, send.patience_s, send.limits) == (4, 1800, ())
    assert (send.read.base_point, send.read.point, send.read.chained) == ("p0", "p1", True)
    assert send.read.source == api.NbdSource("/run/backup.sock", "vda", "dirty-vda")


def test_a_disk_ends_when_both_of_its_ends_have() -> None:
    far = [running(), running(), done(busy={"network": 0.5})]
    ends = two_ends({"vda": [done(busy={"network": 2.0})]}, {"vda": far})
    (report,) = copy(ends, "vda")
    assert len(ends.target_mover.of(api.WorkQuery)) == 3
    assert report.busy["network"] == 1.0
    slower = replace(report, seconds=3.0)
    assert send_seconds([replace(report, seconds=1.0), slower]) == 3.0
    assert send_seconds([replace(slower, busy={"network": 0.25, "source": 0.75})]) == 0.75
    # The source end was done: it is the target end that is waited for, not asked without a pause.
    assert all(query.wait_s > 0 for query in ends.target_mover.of(api.WorkQuery))


def test_a_stand_alone_layer_is_compared_with_no_base() -> None:
    ends = one_end()
    Copy(ends, (plan("vda", chained=False),)).run()
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
    with contextlib.suppress(DatastoreError):
        Copy(ends, (plan("vda"), plan("vdb")), images).run()
    opened = ends.source_mover.of(api.OpenExport)
    assert [(item.image, item.image_format, item.bitmap) for item in opened] == [
        ("/images/a", "qcow2", "cp"), ("/images/b", "raw", ""),
    ]  # fmt: skip
    assert {item.tag for item in opened} == {TAG}
    assert [item.id for item in ends.source_mover.of(api.CloseExport)] == ["/images/a#1", "/images/b#2"]


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
        Copy(ends, (plan("vda"), plan("vdb")), images).run()
    assert [item.id for item in ends.source_mover.of(api.CloseExport)] == ["/images/a#1"]


def test_waiting_for_progress_is_left_to_the_mover() -> None:
    ends = one_end(vda=[running()] * 5 + [done()])
    started = time.monotonic()
    copy(ends, "vda", "vdb")
    waits = [query.wait_s for query in ends.source_mover.of(api.WorkQuery)]
    assert all(0 < wait <= 0.1 for wait in waits)
    assert time.monotonic() - started < 5
