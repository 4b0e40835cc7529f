"""A dirty map that cannot be used is noticed while the snapshot is held: the disk is scanned, and that is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.replication.ends import Copy, Ends, copy, done, failed, one_end, plan, running, two_ends, two_services
from understudy.errors import CbtMismatch, DatastoreError, PlatformError, TrackingLost, TransferError, UnderstudyError
from understudy.model.inventory import VmState
from understudy.model.session import DiskReport
from understudy.model.snapshot import ImageDisk
from understudy.model.transfer import Reason, TransferMode
from understudy.mover import api
from understudy.mover.protocol import decode, encode
from understudy.replication.held import LostTracking, Works

pytestmark = pytest.mark.timeout(60)

INCREMENTAL = replace(plan("vda"), mode=TransferMode.INCREMENTAL, reason=Reason.NONE)
MISMATCH = CbtMismatch("read disk 'vda'", "3 of 16 blocks that tracking calls unchanged have changed", "use a scan")
NO_MAP = TrackingLost("read socket", "no dirty map 'x' is served")
SCANNED = (TransferMode.DIGEST_SCAN, Reason.CBT_MISMATCH)


def lost(error: UnderstudyError = MISMATCH, checked: int = 16, mismatched: int = 3) -> api.WorkStatus:
    return replace(failed(error), progress=api.Progress(checked=checked, mismatched=mismatched))


def how(report: DiskReport) -> tuple[TransferMode, Reason]:
    return report.mode, report.reason


def modes(ends: Ends) -> list[tuple[TransferMode, str]]:
    """Mode and dirty context of each beginning of the source side."""
    requests = [*ends.source_mover.of(api.CopyDisk), *ends.source_mover.of(api.SendDisk)]
    return [(item.read.mode, item.read.source.dirty_context) for item in requests]


BOTH = [(TransferMode.INCREMENTAL, "dirty-vda"), (TransferMode.DIGEST_SCAN, "")]


@pytest.mark.parametrize("made_with", [
    lambda script: one_end(vda=script),
    lambda script: two_ends({"vda": script}, {"vda": [running(), running(), running(), done()]}),
    lambda script: two_services({"vda": script}, {"vda": [running(), running(), running(), done()]}),
], ids=["one proxy", "two proxies", "two services"])  # fmt: skip
def test_a_mismatch_turns_the_disk_into_a_scan_of_the_same_snapshot(
    made_with: Callable[[list[api.WorkStatus]], Ends],
) -> None:
    made = made_with([lost(), running(processed=500), done(processed=1000, read=1000)])
    run = Copy(made, (INCREMENTAL,))
    (report,) = run.run()
    assert how(report) == SCANNED
    assert (report.checked_blocks, report.mismatched_blocks, report.processed_bytes) == (16, 3, 1000)
    assert modes(made) == BOTH
    assert made.journal.warnings == ["disk vda: 3 of 16 blocks that tracking calls unchanged have changed; every block "
                                     "is compared with its digest instead"]  # fmt: skip
    assert len(made.target_mover.of(api.ReceiveDisk)) <= 1
    assert len({item.target for item in made.source_mover.of(api.SendDisk)}) <= 1
    assert {how(item) for item, _ in made.journal.reports} == {SCANNED}


def test_a_dirty_map_that_is_not_served_turns_the_disk_into_a_scan_too() -> None:
    ends = one_end(vda=[lost(NO_MAP, 0, 0), done()])
    (report,) = Copy(ends, (INCREMENTAL,)).run()
    assert how(report) == (TransferMode.DIGEST_SCAN, Reason.BITMAP_INCONSISTENT)
    assert modes(ends) == BOTH
    assert ends.journal.warnings[0].startswith("disk vda: no dirty map 'x' is served; every block")


def test_an_incremental_that_found_no_mismatch_tells_how_many_blocks_it_compared() -> None:
    ends = one_end(vda=[running(checked=16), done(checked=16)])
    (report,) = Copy(ends, (INCREMENTAL,)).run()
    assert how(report) == (TransferMode.INCREMENTAL, Reason.NONE)
    assert (report.checked_blocks, report.mismatched_blocks) == (16, 0)
    assert ends.journal.warnings == []


def test_the_decision_is_noted_before_the_scan_begins_and_survives_the_controller() -> None:
    ends = two_ends({"vda": [lost(), running(), done()]}, {"vda": [*[running()] * 3, done()]})
    run = Copy(ends, (INCREMENTAL,))
    run.run()
    decided = LostTracking(Reason.CBT_MISMATCH, 16, 3)
    assert [(works["vda"].source, works["vda"].lost) for works in run.noted] == [
        ("near-vda", None), ("", decided), ("near-vda-2", decided),
    ]  # fmt: skip
    # The next controller has the old plan. Were it to begin an incremental, a second sample might miss the lie.
    for noted in run.noted:
        later = two_ends({"vda": [running(), lost(), done()]}, {"vda": [*[running()] * 4, done()]})
        if noted["vda"].lost is not None:
            later.source_mover.scripts["vda"] = [running(), done()]
        for mover, work in ((later.source_mover, noted["vda"].source), (later.target_mover, noted["vda"].target)):
            mover.active |= {work}
        (report,) = Copy(later, (INCREMENTAL,), works=dict(noted)).run()
        assert how(report) == SCANNED
        assert (report.checked_blocks, report.mismatched_blocks) == (16, 3)
        assert {mode for mode, _ in modes(later)} <= {TransferMode.DIGEST_SCAN}


def test_a_target_that_failed_meanwhile_ends_the_transfer() -> None:
    ends = two_ends({"vda": [lost(), running()]}, {"vda": [failed(DatastoreError("write disk vda", "no space left"))]})
    with pytest.raises(DatastoreError):
        Copy(ends, (INCREMENTAL,)).run()


def test_a_scan_that_calls_its_tracking_lost_is_not_scanned_again_and_again() -> None:
    with pytest.raises(TrackingLost):
        copy(one_end(vda=[lost(NO_MAP)]), "vda")


def test_a_forced_scan_gets_the_dirty_map_and_tells_what_it_concealed() -> None:
    ends = one_end(vda=[running(checked=500, mismatched=2), done(checked=900, mismatched=7)])
    (report,) = copy(ends, "vda")
    assert how(report) == (TransferMode.DIGEST_SCAN, Reason.FORCED)
    assert (report.checked_blocks, report.mismatched_blocks) == (900, 7)
    assert modes(ends) == [(TransferMode.DIGEST_SCAN, "dirty-vda")]
    assert ends.journal.warnings == ["disk vda: 7 of 900 blocks that tracking calls unchanged had changed; the scan "
                                     "found them all"]  # fmt: skip


@pytest.mark.parametrize("reason", [Reason.SNAPSHOT_LEFT, Reason.BITMAP_INCONSISTENT, Reason.NO_BASELINE])
def test_a_scan_for_another_reason_does_not_get_a_dirty_map_that_is_not_to_be_trusted(reason: Reason) -> None:
    ends = one_end()
    Copy(ends, (replace(plan("vda"), reason=reason),)).run()
    assert modes(ends) == [(TransferMode.DIGEST_SCAN, "")]


# --- images that lie still --------------------------------------------------------------------------------------------

IMAGE = ImageDisk("vda", "/images/a", "qcow2", "cp")


def with_image(ends: Ends, disk_plan_mode: TransferMode) -> Copy:
    return Copy(ends, (INCREMENTAL if disk_plan_mode is TransferMode.INCREMENTAL else plan("vda"),), (IMAGE,),
                state=VmState.SHUT_OFF)  # fmt: skip


@pytest.mark.parametrize("mode", [TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN])
def test_a_dirty_map_that_cannot_be_read_does_not_keep_an_image_from_being_served(mode: TransferMode) -> None:
    script = [lost(NO_MAP, 0, 0), done()] if mode is TransferMode.INCREMENTAL else [done()]
    ends = one_end(vda=script)
    ends.source_mover.problems[api.OpenExport] = [PlatformError("export /images/a", "Bitmap 'cp' is inconsistent")]
    (report,) = with_image(ends, mode).run()
    assert report.mode is TransferMode.DIGEST_SCAN
    assert [item.bitmap for item in ends.source_mover.of(api.OpenExport)] == ["cp", ""]
    assert "disk vda: its dirty map cannot be read: Bitmap 'cp' is inconsistent" in ends.journal.warnings


def test_an_image_that_cannot_be_served_at_all_says_so() -> None:
    ends = one_end()
    in_use = PlatformError("export /images/a", "in use for writing")
    ends.source_mover.problems[api.OpenExport] = [in_use, in_use]
    with pytest.raises(PlatformError, match="in use for writing"):
        with_image(ends, TransferMode.DIGEST_SCAN).run()
    assert ends.journal.warnings == []


def test_other_errors_of_serving_are_not_taken_for_a_lost_dirty_map() -> None:
    ends = one_end()
    ends.source_mover.problems[api.OpenExport] = [TransferError("open /images/a", "locked")]
    with pytest.raises(TransferError):
        with_image(ends, TransferMode.DIGEST_SCAN).run()


def test_works_that_an_older_controller_noted_can_be_read() -> None:
    older = encode(Works("near-vda", "far-vda")).replace(b',"lost":null', b"")
    assert b"lost" not in older
    assert decode(Works, older) == Works("near-vda", "far-vda")
    newer = Works(lost=LostTracking(Reason.CBT_MISMATCH, 16, 3))
    assert decode(Works, encode(newer)) == newer
