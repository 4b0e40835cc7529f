"""A disk between proxies that are restarted, do not answer, or refuse: what is begun again, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from tests.unit.replication.ends import (
    SPEC,
    Copy,
    Ends,
    Mover,
    Scripted,
    Slots,
    copy,
    done,
    failed,
    one_end,
    plan,
    running,
    service,
    two_ends,
    two_services,
)
from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, Fenced, LinkLost, MoverError, NotFound, Refused, TransferError
from understudy.model.inventory import VmState
from understudy.model.job import Compression
from understudy.model.snapshot import ImageDisk
from understudy.model.transfer import TransportMode
from understudy.mover import api
from understudy.replication import disk_transfer
from understudy.replication.held import Works

pytestmark = pytest.mark.timeout(60)

SILENT = MoverError("proxy at far", "connection refused")
IMAGE = ImageDisk("vda", "/images/a", "qcow2", "cp")


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(disk_transfer, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep))
    return made


def restarting(end: str, *disks: str, near: Sequence[Scripted] | None = None) -> Ends:
    """Services of which one restarts while the disks are under way; the other end runs on meanwhile."""
    ends = two_services({}, {})
    mover = ends.source_mover if end == "source" else ends.target_mover
    for disk in disks:
        ends.source_mover.scripts[disk] = [*[running()] * 6, done()] if near is None else list(near)
        ends.target_mover.scripts[disk] = [*[running()] * 6, done()]
    mover.scripts[disks[-1]].insert(1, mover.restart)
    return ends


def tickets(mover: Mover) -> list[str]:
    return [request.target.ticket for request in mover.of(api.SendDisk)]


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restarted_target_opens_the_draft_once_and_running_sources_are_redirected() -> None:
    ends = restarting("target", "vda", "vdb")
    run = Copy(ends, (plan("vda"), plan("vdb")))
    assert len(run.run()) == 2
    (reopened,) = ends.target_mover.of(api.BeginPoint)
    assert reopened == replace(run.held.begin, resume=True)
    drafts = [item.draft for item in ends.target_mover.of(api.ReceiveDisk)]
    assert drafts == ["draft-1", "draft-1", "draft-2", "draft-2"]
    redirected = {item.work: item.target for item in ends.source_mover.of(api.RedirectSend)}
    assert redirected == {
        f"near-{disk}": api.TargetAddress("far:9001", "far-identity", f"ticket-far-{disk}-2") for disk in ("vda", "vdb")
    }
    assert len(ends.source_mover.of(api.SendDisk)) == 2
    assert {disk: works.target for disk, works in run.noted[-1].items()} == {"vda": "far-vda-2", "vdb": "far-vdb-2"}
    assert (run.draft.id, run.draft.generation) == ("draft-2", 1)


def test_a_source_side_that_had_ended_when_the_target_restarted_is_begun_again() -> None:
    ends = restarting("target", "vda", near=[done()])
    copy(ends, "vda")
    assert tickets(ends.source_mover) == ["ticket-far-vda", "ticket-far-vda-2"]
    assert ends.source_mover.of(api.RedirectSend) == []


def test_a_source_side_that_lost_the_line_to_a_restarted_target_is_begun_again() -> None:
    ends = restarting("target", "vda", near=[running(), failed(LinkLost("send disk", "gone")), done()])
    copy(ends, "vda")
    assert tickets(ends.source_mover) == ["ticket-far-vda", "ticket-far-vda-2"]


def test_a_source_side_that_ends_just_when_it_is_to_be_redirected_is_begun_again() -> None:
    ends = restarting("target", "vda")
    ends.source_mover.problems[api.RedirectSend] = [NotFound("work", "this proxy does not send for it")]
    copy(ends, "vda")
    assert tickets(ends.source_mover) == ["ticket-far-vda", "ticket-far-vda-2"]
    assert len(ends.source_mover.of(api.RedirectSend)) == 1


def test_a_source_that_restarts_just_when_it_is_to_be_redirected_is_told_its_limits_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = restarting("target", "vda")
    mover, call = ends.source_mover, ends.source_mover.call

    def restarts_first(request: object, response_type: type) -> object:
        if isinstance(request, api.RedirectSend):
            mover.restart()
        return call(request, response_type)

    monkeypatch.setattr(mover, "call", restarts_first)
    copy(ends, "vda")
    assert tickets(mover) == ["ticket-far-vda", "ticket-far-vda-2"]
    assert ends.resources.restarts == ["near"]


def test_a_restarted_source_sends_again_with_the_same_ticket() -> None:
    ends = restarting("source", "vda")
    run = Copy(ends, (plan("vda"),))
    run.run()
    assert tickets(ends.source_mover) == ["ticket-far-vda"] * 2
    assert len(ends.target_mover.of(api.ReceiveDisk)) == 1
    assert run.noted[-1]["vda"].source == "near-vda-2"
    assert ends.target_mover.of(api.BeginPoint) == []


def test_both_ends_may_restart_at_once() -> None:
    ends = restarting("source", "vda")
    ends.target_mover.scripts["vda"].insert(1, ends.target_mover.restart)
    copy(ends, "vda")
    assert tickets(ends.source_mover) == ["ticket-far-vda", "ticket-far-vda-2"]
    assert ends.source_mover.of(api.RedirectSend) == []


def test_a_single_proxy_that_restarts_copies_again_into_the_reopened_draft() -> None:
    ends = one_end()
    ends.source_proxy = ends.target_proxy = service("local", "a")
    ends.source_mover.scripts["vda"] = [running(), ends.source_mover.restart, running(), done()]
    copy(ends, "vda")
    assert [item.draft for item in ends.source_mover.of(api.CopyDisk)] == ["draft-1", "draft-2"]
    assert ends.source_mover.of(api.ReceiveDisk) == []


def test_another_attempt_that_came_first_ends_the_transfer() -> None:
    ends = restarting("target", "vda")
    ends.target_mover.problems[api.BeginPoint] = Fenced("replica", "a newer attempt owns it")
    with pytest.raises(Fenced):
        copy(ends, "vda")


def test_a_disk_that_was_done_comes_again_when_the_draft_was_opened_again() -> None:
    ends = restarting("target", "vda", "vdb")
    ends.source_mover.scripts["vda"], ends.target_mover.scripts["vda"] = [done()], [done()]
    reports = copy(ends, "vda", "vdb")
    assert sorted(item.name for item in reports) == ["vda", "vdb"]
    assert [item.disk for item in ends.target_mover.of(api.ReceiveDisk)] == ["vda", "vdb", "vdb", "vda"]
    assert tickets(ends.source_mover) == ["ticket-far-vda", "ticket-far-vdb", "ticket-far-vda-2"]
    # It is sent under the rate limits of its proxies, as before.
    assert ends.resources.asked == [("near", "far")] * 3
    assert ends.resources.sending_now == 0


def test_a_disk_that_comes_again_long_after_its_end_has_the_whole_patience(clock: Clock) -> None:
    ends = restarting("target", "vda", "vdb")
    ends.source_mover.scripts["vda"], ends.target_mover.scripts["vda"] = [done()], [done()]
    ends.target_mover.scripts["vdb"].insert(1, lambda: clock.sleep(2 * 3600))
    ends.target_mover.problems[api.ReceiveDisk] = [None, None, None, SILENT]
    copy(ends, "vda", "vdb")
    assert [item.disk for item in ends.target_mover.of(api.ReceiveDisk)] == ["vda", "vdb", "vdb", "vda", "vda"]


def test_last_words_of_a_proxy_that_restarted_are_not_waited_for() -> None:
    ends = two_services({"vda": [failed(LinkLost("send disk", "cut"))]}, {})
    ends.target_mover.scripts["vda"] = [running(), ends.target_mover.restart, running()]
    with pytest.raises(LinkLost, match="cut"):
        copy(ends, "vda")


# --- proxies that do not answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_service_that_does_not_answer_is_waited_for_and_that_is_said(end: str) -> None:
    ends = two_services({"vda": [running()] * 2 + [done()]}, {})
    mover = ends.source_mover if end == "source" else ends.target_mover
    mover.problems[api.WorkQuery] = [None, *[SILENT] * 3]
    (copied,) = copy(ends, "vda")
    assert ends.journal.waits("vda") == ["", "proxy at far: connection refused, since 0 s", ""]
    assert copied.waiting == ""
    assert all(report.rate == 0 for report, _ in ends.journal.reports if report.waiting)


def test_a_service_that_never_comes_back_ends_the_transfer_after_the_jobs_patience(clock: Clock) -> None:
    ends = two_services({"vda": [running()]}, {})
    ends.target_mover.problems[api.WorkQuery] = SILENT
    began = clock.now
    spec = replace(SPEC, job=replace(SPEC.job, patience_s=60))
    with pytest.raises(MoverError, match="connection refused"):
        Copy(ends, (plan("vda"),), spec=spec).run()
    assert 60 < clock.now - began < 62


def test_patience_begins_anew_with_each_answer() -> None:
    ends = two_services({"vda": [running()] * 3 + [done()]}, {"vda": [running()] * 3 + [done()]})
    silent_40_s = [SILENT] * 200
    ends.target_mover.problems[api.WorkQuery] = [*silent_40_s, None, *silent_40_s]
    Copy(ends, (plan("vda"),), spec=replace(SPEC, job=replace(SPEC.job, patience_s=60))).run()


def test_the_operator_may_end_the_wait() -> None:
    ends, ctx = two_services({"vda": [running()]}, {}), Context()
    ends.target_mover.scripts["vda"] = [ctx.cancel.cancel, running()]
    ends.source_mover.problems[api.WorkQuery] = [None, *[SILENT] * 1000]
    with pytest.raises(Cancelled):
        copy(ends, "vda", ctx=ctx)


def test_a_child_that_does_not_answer_ends_the_transfer_at_once(clock: Clock) -> None:
    ends, began = two_ends({"vda": [running()]}, {}), clock.now
    ends.target_mover.problems[api.WorkQuery] = SILENT
    with pytest.raises(MoverError, match="connection refused"):
        copy(ends, "vda")
    assert clock.now == began


def test_a_child_that_died_is_not_waited_for_although_the_other_end_is_a_service(clock: Clock) -> None:
    ends, began = two_services({"vda": [running()]}, {}), clock.now
    ends.source_proxy = replace(two_ends({}, {}).source_proxy, identity="near-identity")
    ends.source_mover.problems |= {api.WorkQuery: SILENT, api.About: MoverError("proxy 'near'", "it died")}
    with pytest.raises(MoverError, match="it died"):
        copy(ends, "vda")
    assert clock.now == began


def test_a_child_that_lives_waits_for_a_service() -> None:
    ends = two_services({}, {})
    ends.source_proxy = replace(two_ends({}, {}).source_proxy, identity="near-identity")
    ends.target_mover.problems[api.WorkQuery] = [SILENT] * 3
    copy(ends, "vda")


# --- a begin that fails in the middle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "receives", "sends"), [(api.ReceiveDisk, 3, 1), (api.SendDisk, 1, 3)], ids=["target", "source"]
)
def test_a_begin_that_fails_is_carried_on_where_it_was(kind: type, receives: int, sends: int) -> None:
    ends = two_services({}, {})
    for mover in (ends.source_mover, ends.target_mover):
        mover.problems[kind] = [SILENT, SILENT]
    copy(ends, "vda")
    assert len(ends.target_mover.of(api.ReceiveDisk)) == receives
    assert len(ends.source_mover.of(api.SendDisk)) == sends
    assert tickets(ends.source_mover)[-1] == "ticket-far-vda"


def test_a_redirect_that_fails_is_not_forgotten() -> None:
    ends = restarting("target", "vda")
    ends.source_mover.problems[api.RedirectSend] = [SILENT, SILENT]
    copy(ends, "vda")
    assert [item.target.ticket for item in ends.source_mover.of(api.RedirectSend)] == ["ticket-far-vda-2"] * 3
    assert len(ends.target_mover.of(api.ReceiveDisk)) == 2
    assert len(ends.source_mover.of(api.SendDisk)) == 1


@pytest.mark.parametrize("kind", [api.BeginPoint, api.ReceiveDisk], ids=["draft", "receive"])
def test_a_target_that_is_not_ready_after_its_restart_is_asked_again(kind: type) -> None:
    ends = restarting("target", "vda")
    problems: list[MoverError | None] = [SILENT, SILENT]
    ends.target_mover.problems[kind] = [None, *problems] if kind is api.ReceiveDisk else [*problems]
    copy(ends, "vda")
    assert [item.target.ticket for item in ends.source_mover.of(api.RedirectSend)] == ["ticket-far-vda-2"]
    assert len(ends.target_mover.of(api.BeginPoint)) == (1 if kind is api.ReceiveDisk else 3)


def test_a_source_proxy_that_cannot_be_told_its_limits_is_waited_for() -> None:
    ends = two_services({}, {})
    ends.resources.problems = [MoverError("limit what proxy 'near' sends", "it could not be told its rate")]
    copy(ends, "vda")
    assert "limit what proxy 'near' sends: it could not be told its rate, since 0 s" in ends.journal.waits("vda")
    assert ends.source_mover.of(api.SendDisk)[0].limits == ("from:near",)
    assert ends.resources.sending_now == 0


def test_an_error_that_is_no_silence_is_raised_at_once() -> None:
    ends = two_services({}, {})
    ends.target_mover.problems[api.ReceiveDisk] = DatastoreError("receive disk", "no space left")
    with pytest.raises(DatastoreError):
        copy(ends, "vda")


# --- addresses --------------------------------------------------------------------------------------------------------


def test_between_hosts_each_end_knows_the_name_of_the_other() -> None:
    ends = two_services({}, {})
    copy(ends, "vda")
    (receive,), (send,) = ends.target_mover.of(api.ReceiveDisk), ends.source_mover.of(api.SendDisk)
    assert receive.source_identity == "near-identity"
    assert send.target == api.TargetAddress("far:9001", "far-identity", "ticket-far-vda")
    assert send.compression is Compression.ZSTD
    assert send.limits == ("from:near",)


@pytest.mark.parametrize("children", [True, False])
def test_inside_one_machine_nothing_is_compressed(children: bool) -> None:
    ends = two_ends({}, {}) if children else two_services({}, {})
    if not children:
        ends.source_proxy = replace(ends.source_proxy, host="b")
    copy(ends, "vda")
    (send,) = ends.source_mover.of(api.SendDisk)
    assert send.compression is Compression.NONE
    assert bool(send.target.identity) == (not children)


def test_a_target_proxy_without_data_address_is_an_error_that_says_what_to_do() -> None:
    ends = two_services({}, {})
    ends.target_proxy = replace(ends.target_proxy, data_address="")
    with pytest.raises(Refused, match=r"to proxy 'far': it has no data address; .*proxy set 'far' --data-address"):
        copy(ends, "vda")
    assert [item.work for item in ends.target_mover.of(api.CancelWork)] == ["far-vda"]


def test_the_report_tells_how_the_disk_is_reached() -> None:
    ends = two_services({}, {})
    ends.transport = TransportMode.NETWORK
    (copied,) = copy(ends, "vda")
    assert copied.transport is TransportMode.NETWORK


# --- exports ----------------------------------------------------------------------------------------------------------


def images(ends: Ends, state: VmState, works: dict[str, Works] | None = None) -> Copy:
    return Copy(ends, (plan("vda"),), (IMAGE,), state=state, works=works or {})


def test_the_disk_of_a_powered_off_vm_is_not_opened_again_after_a_restart_of_the_source() -> None:
    ends = restarting("source", "vda")
    with pytest.raises(TransferError, match="the source proxy was restarted, and the VM, which is off, may have run"):
        images(ends, VmState.SHUT_OFF).run()
    assert len(ends.source_mover.of(api.OpenExport)) == 1


def test_nor_by_another_controller() -> None:
    ends = two_services({}, {})
    ends.source_mover.restart()
    held = api.OpenedExport("export-1", api.NbdSource("/run/export-1.nbd", "disk", ""))
    ends.source_mover.forgotten.add("near-vda")
    works = {"vda": Works("near-vda", "far-vda", "ticket-far-vda", "", held)}
    with pytest.raises(TransferError, match="may have run in between"):
        images(ends, VmState.SHUT_OFF, works).run()
    assert ends.source_mover.of(api.OpenExport) == []


@pytest.mark.parametrize("another_controller", [False, True])
def test_an_export_that_a_restart_of_the_target_did_not_touch_is_read_on(another_controller: bool) -> None:
    ends = restarting("target", "vda", near=[done()])
    held = api.OpenedExport("/images/a#1", api.NbdSource("/images/a#1.nbd", "x", ""))
    works = {"vda": Works("near-vda", "far-vda", "ticket-far-vda", "", held)} if another_controller else {}
    if another_controller:
        ends.source_mover.begin("vda")
        ends.target_mover.begin("vda")
    run = images(ends, VmState.SHUT_OFF, works)
    run.run()
    assert len(ends.source_mover.of(api.OpenExport)) == (0 if another_controller else 1)
    assert {item.read.source for item in ends.source_mover.of(api.SendDisk)} == {held.source}
    assert run.noted[-1]["vda"].export == held
    assert [item.id for item in ends.source_mover.of(api.CloseExport)] == ["/images/a#1"]


def test_the_base_of_a_snapshot_delta_is_opened_again_after_a_restart_of_the_source() -> None:
    ends = restarting("source", "vda")
    run = images(ends, VmState.RUNNING)
    run.run()
    assert [item.read.source.socket for item in ends.source_mover.of(api.SendDisk)] == [
        "/images/a#1.nbd", "/images/a#2.nbd",
    ]  # fmt: skip
    assert [item.id for item in ends.source_mover.of(api.CloseExport)] == ["/images/a#1", "/images/a#2"]
    export = run.noted[-1]["vda"].export
    assert export is not None
    assert export.id == "/images/a#2"


def test_an_export_that_cannot_be_closed_is_a_warning_and_hides_nothing() -> None:
    ends = one_end(vda=[failed(DatastoreError("write disk vda", "no space left"))])
    ends.source_mover.problems[api.CloseExport] = MoverError("proxy 'near'", "it died")
    with pytest.raises(DatastoreError, match="no space left"):
        Copy(ends, (plan("vda"), plan("vdb")), (IMAGE, replace(IMAGE, name="vdb"))).run()
    assert ends.journal.warnings == ["close what was read: proxy 'near': it died"] * 2


# --- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [api.SendDisk, api.WorkQuery], ids=["begin", "follow"])
@pytest.mark.parametrize("parallel", [1, 2])
def test_every_slot_that_was_taken_is_given_back_once_when_a_disk_fails(where: type, parallel: int) -> None:
    ends = two_ends({}, {})
    ends.source_mover.problems[where] = DatastoreError("do it", "no luck")
    with pytest.raises(DatastoreError):
        copy(ends, "vda", "vdb", "vdc", parallel=parallel)


def test_every_slot_is_given_back_once_when_disks_come_again() -> None:
    ends = restarting("target", "vda", "vdb")
    ends.source_mover.scripts["vda"], ends.target_mover.scripts["vda"] = [done()], [done()]
    slots = Slots()
    Copy(ends, (plan("vda"), plan("vdb")), slots=slots).run()
    assert (slots.taken, slots.given_back) == (2, 2)


def test_a_disk_that_waits_for_a_slot_says_so() -> None:
    ends = one_end(vda=[running(), running(), done()])
    copy(ends, "vda", "vdb", parallel=1)
    assert ends.journal.waits("vdb") == ["no free task slot on proxy 'near'", ""]
    assert ends.journal.waits("vda") == [""]


# --- what another controller began ------------------------------------------------------------------------------------


def begun(ends: Ends, *disks: str) -> dict[str, Works]:
    """The works of transfers that another controller began."""
    return {
        disk: Works(ends.source_mover.begin(disk), ends.target_mover.begin(disk), f"ticket-far-{disk}", "/run/x")
        for disk in disks
    }


def test_what_another_controller_began_goes_on_and_no_slot_is_needed_for_that() -> None:
    ends = two_services({}, {})
    slots = Slots(1)
    run = Copy(ends, (plan("vda"), plan("vdb"), plan("vdc")), slots=slots, works=begun(ends, "vdc", "vdb"))
    assert len(run.run()) == 3
    assert [item.disk for item in ends.target_mover.of(api.ReceiveDisk)] == ["vda"]
    assert [item.read.disk for item in ends.source_mover.of(api.SendDisk)] == ["vda"]
    assert slots.taken == slots.given_back
    assert ends.journal.waits("vdb") == ends.journal.waits("vdc") == [""]
    assert {"vdb", "vdc"} <= set(run.noted[0]), "a third controller would need them"


def test_what_another_controller_began_is_stopped_when_a_disk_fails() -> None:
    ends = two_services({}, {})
    works = begun(ends, "vda", "vdb")
    ends.source_mover.problems[api.WorkQuery] = DatastoreError("read", "broken")
    with pytest.raises(DatastoreError):
        Copy(ends, (plan("vda"), plan("vdb")), works=works).run()
    assert {item.work for item in ends.source_mover.of(api.CancelWork)} == {"near-vda", "near-vdb"}
    assert {item.work for item in ends.target_mover.of(api.CancelWork)} == {"far-vda", "far-vdb"}


def test_even_when_nobody_here_had_looked_at_it() -> None:
    ends = two_services({}, {})
    works = begun(ends, "vda", "vdb")
    # The first disk fails at its very start.
    ends.resources.sending = lambda *_: (_ for _ in ()).throw(Refused("limits", "no"))  # type: ignore[method-assign]
    with pytest.raises(Refused):
        Copy(ends, (plan("vda"), plan("vdb")), works=works).run()
    assert {item.work for item in ends.source_mover.of(api.CancelWork)} == {"near-vda", "near-vdb"}


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_rate_is_of_the_last_ten_seconds_and_gives_the_remaining_time(clock: Clock) -> None:
    def later(seconds: float) -> Callable[[], None]:
        return lambda: clock.sleep(seconds)

    ends = one_end()
    ends.source_mover.scripts["vda"] = [
        running(processed=0), later(1), running(processed=100), later(9), running(processed=200), later(8),
        running(processed=500), done(processed=1000),
    ]  # fmt: skip
    copy(ends, "vda")
    reports = [report for report, _ in ends.journal.reports]
    assert [report.rate for report in reports] == [0, 100, 20, pytest.approx(300 / 8), 0]
    assert [report.eta_s for report in reports] == [None, 9, 40, pytest.approx(500 * 8 / 300), None]


def test_a_transfer_that_begins_again_has_no_negative_rate(clock: Clock) -> None:
    ends = one_end()
    ends.source_mover.scripts["vda"] = [
        running(processed=900), lambda: clock.sleep(1), running(processed=10), done(processed=1000),
    ]  # fmt: skip
    copy(ends, "vda")
    assert all(report.rate >= 0 for report, _ in ends.journal.reports)


def test_what_an_earlier_session_brought_and_lost_lines_are_told() -> None:
    ends = two_services(
        {"vda": [done(saved=7, reconnects=3, busy={"source": 1.0, "network": 1.0})]},
        {"vda": [running(waiting="the datastore is slow"), done(busy={"target": 3.0, "network": 1.0})]},
    )  # fmt: skip
    (copied,) = copy(ends, "vda")
    assert (copied.resumed_bytes, copied.reconnects) == (7, 3)
    assert copied.busy == {
        "source": 0.5, "source_proxy": 0, "network": 0, "target_proxy": 0, "target": 0.5,
    }  # fmt: skip
    assert ends.journal.waits("vda") == ["the datastore is slow", ""]
