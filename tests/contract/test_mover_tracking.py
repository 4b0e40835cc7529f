"""Real movers that are told what did not change: what is not believed, and what is looked at all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.contract.test_mover import SIZE, Lab
from tests.unit.mover.mover_lab import add_bitmap, io, lie, make_image, run, write
from understudy.errors import CbtMismatch, NotFound, TrackingLost, from_fields
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.units import KIB, MIB

INCREMENTAL, SCAN = TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN
BLOCK = 256 * KIB
BLOCKS = -(-SIZE // BLOCK)


@dataclass
class Tracked(Lab):
    """A lab in which more can be said of the replica than its digests say.

    :ivar tried: the progress of a transfer that found a mismatch, and that was a digest scan from then on.
    """

    block_size: int = BLOCK
    suspect: tuple[Extent, ...] = ()
    since_point: str = ""
    tried: api.Progress | None = None

    def transfer(self, read: api.ReadSpec, draft: str) -> api.Progress:
        """As the controller does: if the dirty map cannot be used, the same transfer is begun again as a scan."""
        read = replace(read, suspect=self.suspect, since_point=self.since_point)
        if self.source is self.target:
            return self.carry(read, lambda spec: api.CopyDisk(spec, draft))
        received = self.target.client.call(
            api.ReceiveDisk(draft, "vda", read.size, read.block_size, "", 5.0), api.ReceiveStarted
        )
        address = api.TargetAddress(received.socket, "", received.ticket)
        progress = self.carry(read, lambda spec: api.SendDisk(spec, address, self.compression, 4, 5.0))
        self.wait(self.target, received.work)
        return progress

    def carry(self, read: api.ReadSpec, request_of: Callable[[api.ReadSpec], object]) -> api.Progress:
        work = self.source.client.call(request_of(read), api.WorkStarted).work
        status = self.source.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        if status.error is not None and status.error.code == CbtMismatch.code:
            self.tried = status.progress
            scan = replace(read, mode=SCAN, source=replace(read.source, dirty_context=""))
            work = self.source.client.call(request_of(scan), api.WorkStarted).work
        return self.wait(self.source, work)

    def keep(self, *also: str) -> None:
        """Keep the source side's digests of older points."""
        request = api.KeepDigests(self.replica_id, self.points[-1], ("vda",), also)
        self.source.client.call(request, api.Nothing)

    def holds(self, point: str) -> bool:
        return self.source.client.call(api.DigestRef(self.replica_id, "vda", point), api.DigestHolding).usable


@pytest.fixture(scope="module")
def movers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MoverProcess, MoverProcess]]:
    base = tmp_path_factory.mktemp("movers")
    with (
        MoverProcess("source", base / "s", base / "source-state", base / "source.log") as source,
        MoverProcess("target", base / "t", base / "target-state", base / "target.log") as target,
    ):
        yield source, target


@pytest.fixture(params=["one mover", "two movers"])
def lab(request: pytest.FixtureRequest, movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> Tracked:
    source, target = movers
    (tmp_path / "ds").mkdir()
    image = make_image(tmp_path / "source.qcow2", SIZE)
    write(image, 1, (0, 6 * MIB), (7 * MIB, 3 * MIB + 512))
    made = Tracked(source if request.param == "two movers" else target, target, tmp_path, image)
    made.replicate(TransferMode.FULL)
    add_bitmap(image, "b")
    return made


def test_an_honest_dirty_map_is_sampled_and_followed(lab: Tracked) -> None:
    write(lab.image, 2, (MIB + 512, 512), (SIZE - 1024, 512))
    progress = lab.replicate(INCREMENTAL, "b")
    lab.check()
    assert (progress.checked, progress.mismatched) == (16, 0)
    assert progress.read == 2 * BLOCK
    assert lab.tried is None


def test_a_dirty_map_that_lies_is_caught_before_anything_is_written(lab: Tracked) -> None:
    write(lab.image, 2, (MIB + 512, 512))
    # Of 41 blocks one is dirty, 4 are no data, and 27 lie, so that at least 3 of 16 are caught.
    lie(lab.image, *(index * BLOCK + 99 for index in range(BLOCKS) if index % 4 and index not in range(24, 28)))
    progress = lab.replicate(INCREMENTAL, "b")
    lab.check()
    assert lab.tried is not None
    assert lab.tried.checked == 16
    assert 3 <= lab.tried.mismatched <= 16
    assert (lab.tried.processed, lab.tried.sent) == (0, 0)
    assert (progress.checked, progress.processed) == (0, SIZE)


def test_a_scan_that_is_given_the_dirty_map_counts_every_block_that_it_conceals(lab: Tracked) -> None:
    write(lab.image, 2, (MIB + 512, 512))
    lie(lab.image, 5, 5 * BLOCK, 8 * MIB, SIZE - 1)
    progress = lab.replicate(SCAN, "b")
    lab.check()
    assert (progress.checked, progress.mismatched) == (BLOCKS - 1, 4)
    assert lab.replicate(SCAN, "b").mismatched == 0


def test_a_scan_counts_blocks_that_are_zero_without_reading_them(lab: Tracked) -> None:
    io(lab.image, f"write -z -u 0 {2 * BLOCK}")
    run("qemu-img", "bitmap", "--remove", lab.image, "b")
    add_bitmap(lab.image, "b")
    progress = lab.replicate(SCAN, "b")
    lab.check()
    assert (progress.checked, progress.mismatched) == (BLOCKS, 2)


def test_a_scan_of_a_disk_without_a_dirty_map_counts_nothing(lab: Tracked) -> None:
    assert lab.replicate(SCAN).checked == 0
    assert lab.replicate(SCAN, "b", base=False).checked == 0


def test_a_lost_dirty_map_is_told_as_lost_tracking(lab: Tracked) -> None:
    with pytest.raises(TrackingLost, match="no dirty map"):
        lab.replicate(INCREMENTAL)


@pytest.mark.parametrize("mode", [INCREMENTAL, SCAN])
def test_suspect_blocks_are_sent_whole_whatever_digests_and_dirty_map_say(lab: Tracked, mode: TransferMode) -> None:
    io(lab.image, f"write -z -u {8 * BLOCK} {BLOCK}", f"write -P 0 {9 * BLOCK} 64K", f"write -z {12 * BLOCK} {BLOCK}")
    lab.replicate(mode, "b")
    run("qemu-img", "bitmap", "--clear", lab.image, "b")
    # The replica does not hold what it should; also said of blocks of zeros, of one that never had data among them.
    lie(lab.image_of(lab.points[0]), 3 * BLOCK + 100, SIZE - 512)
    suspect = [3, 8, 9, 12, 25, BLOCKS - 1]
    lab.suspect = tuple(Extent(index * BLOCK + 100, 8) for index in suspect)
    progress = lab.replicate(mode, "b")
    lab.check()
    assert progress.sent == BLOCK + (BLOCK - 64 * KIB) + 512
    assert blocks_of_layer(lab.image_of(lab.points[-1])) == set(suspect)
    assert progress.mismatched == 0
    assert progress.checked == (16 if mode is INCREMENTAL else BLOCKS - 6)


def blocks_of_layer(image: Path) -> set[int]:
    """The blocks that a layer has itself, as data or as zeros."""
    areas = json.loads(run("qemu-img", "map", "--output=json", image))
    own = [(area["start"], area["start"] + area["length"]) for area in areas if area["depth"] == 0]
    return {index for start, end in own for index in range(start // BLOCK, -(-end // BLOCK))}


def test_blocks_that_changed_before_the_newest_point_are_looked_at_although_the_map_may_not_know(lab: Tracked) -> None:
    """The disk was tracked since the first point, then a scan found what tracking had missed, then it went back."""
    (first,) = lab.points
    lie(lab.image, 3 * BLOCK, 30 * BLOCK)
    write(lab.image, 2, (MIB + 512, 512))
    lab.replicate(SCAN)
    lab.check()
    lab.keep(first)  # no older copy is left to keep: the target has it still
    lab.target.client.copy_digests_to(lab.ref, api.DigestRef(lab.replica_id, "vda", first), lab.source.client)
    lie(lab.image, 3 * BLOCK)
    lab.since_point = first
    progress = lab.replicate(INCREMENTAL, "b")
    lab.check()
    assert progress.mismatched == 0
    assert lab.tried is None
    assert progress.read == 3 * BLOCK
    assert progress.sent == BLOCK


def test_digests_of_the_point_since_which_changes_are_tracked_are_kept_if_asked_and_needed(lab: Tracked) -> None:
    first = lab.points[0]
    lab.replicate(INCREMENTAL, "b")
    assert not lab.holds(first)
    lab.target.client.copy_digests_to(lab.ref, api.DigestRef(lab.replica_id, "vda", first), lab.source.client)
    lab.keep(first)
    assert lab.holds(first)
    lab.keep()
    assert not lab.holds(first)
    lab.since_point = first
    with pytest.raises(TrackingLost, match="digest"):
        lab.replicate(INCREMENTAL, "b")
    with pytest.raises(NotFound):
        lab.source.client.call(api.KeepDigests(lab.replica_id, "p9999", ("vda",), (first,)), api.Nothing)


def test_a_scan_needs_no_digests_of_an_older_point(lab: Tracked) -> None:
    lab.since_point = "p9999"
    lab.replicate(SCAN, "b")
    lab.check()


def test_the_error_of_a_mismatch_travels_with_its_numbers(lab: Tracked) -> None:
    lie(lab.image, *(index * BLOCK for index in range(16)))
    opened = lab.source.client.call(api.OpenExport(str(lab.image), "qcow2", "b", "t"), api.OpenedExport)
    draft, point = lab.begin(chained=True)
    read = api.ReadSpec(opened.source, "vda", SIZE, INCREMENTAL, BLOCK, True, lab.replica_id, lab.points[-1], point)
    request: object = api.CopyDisk(read, draft)
    if lab.source is not lab.target:
        nowhere = api.TargetAddress(str(lab.directory / "nobody"), "", "ticket")
        request = api.SendDisk(replace(read), nowhere, lab.compression, 1, 5.0)
    work = lab.source.client.call(request, api.WorkStarted).work
    error = lab.source.client.call(api.WorkQuery(work, 60.0), api.WorkStatus).error
    assert error is not None
    got = from_fields(error.code, error.what, error.why, error.todo)
    assert isinstance(got, CbtMismatch)
    assert "of 16 blocks that tracking calls unchanged have changed" in got.why
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
