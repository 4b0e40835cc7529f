"""What is left out, through real movers and a real qemu-nbd: each point is the snapshot with E zeroed, to the byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_mover_tracking import Tracked, blocks_of_layer
from tests.unit.mover.mover_lab import add_bitmap, io, lie, make_image, run, write
from understudy.errors import NotFound, ReplicaError, UsageError
from understudy.model.exclusion import Exclusion, exclusion_of, pack
from understudy.model.extent import PART, Extent, merge
from understudy.model.replica import Consistency
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import KIB, MIB

FULL, INCREMENTAL, SCAN = TransferMode.FULL, TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN
BLOCK = 256 * KIB
#: 16 blocks, so that a sample has all of them; the last one is short.
SIZE = 4 * MIB - 512
PARTS = SIZE // PART + 1


def parts(*numbers: int) -> tuple[Extent, ...]:
    """These parts of the disk."""
    return tuple(merge(Extent(number * PART, min(PART, SIZE - number * PART)) for number in sorted(set(numbers))))


@dataclass
class Masked(Tracked):
    """A lab that leaves out parts.

    :ivar excluded: E, as it is now.
    :ivar once: what the point in ``since_point`` left out, packed.
    """

    block_size: int = BLOCK
    excluded: tuple[Extent, ...] = ()
    once: str = ""
    standalone: bool = False
    images: dict[str, bytes] = field(default_factory=dict)

    def begin(self, *, chained: bool) -> tuple[str, str]:
        self.attempt += 1
        point = f"p{self.attempt:04d}"
        disks = (NewDisk("vda", self.size(), chained and not self.standalone, mark="m"),)
        request = api.BeginPoint(self.ref, self.identity, self.attempt, point, disks)
        return self.target.client.call(request, api.DraftOpened).draft, point

    def former(self) -> str:
        """E of the newest point, as its proxy tells it."""
        if not self.points:
            return ""
        request = api.ReadExclusions(self.ref, self.points[-1])
        found = self.target.client.call(request, api.PointExclusions).exclusions
        return exclusion_of(found, "vda").packed

    def transfer(self, read: api.ReadSpec, draft: str) -> api.Progress:
        chained = read.chained and not self.standalone
        told = read.mode is INCREMENTAL or bool(read.source.dirty_context)
        read = replace(
            read, chained=chained, base_point=read.base_point if chained else "", excluded=pack(self.excluded),
            formerly_excluded=self.former() if told else "", once_excluded=self.once,
        )
        return super().transfer(read, draft)

    def publish(self, draft: str, point: str) -> None:
        exclusions = (Exclusion("vda", pack(self.excluded), {"mask": sum(item.length for item in self.excluded)}),)
        meta = PointMeta(point, "2025-01-01T00:00:00Z", Consistency.CRASH, 1, self.block_size, None, {}, "<domain/>",
                         exclusions=exclusions)
        self.target.client.call(api.PublishPoint(draft, meta), api.PublishedPoint)
        self.source.client.call(api.KeepDigests(self.replica_id, point, ("vda",)), api.Nothing)
        self.points.append(point)
        self.images[point] = self.snapshot()

    def give_up(self, mode: TransferMode, bitmap: str) -> None:
        """A session that brings everything, and fails before it publishes: the next one continues its layer."""
        draft, point = self.begin(chained=True)
        opened = self.source.client.call(api.OpenExport(str(self.image), "qcow2", bitmap, "t"), api.OpenedExport)
        try:
            read = api.ReadSpec(opened.source, "vda", SIZE, mode, self.block_size, True, self.replica_id,
                                self.points[-1], point)
            self.transfer(read, draft)
        finally:
            self.source.client.call(api.CloseExport(opened.id), api.Nothing)
            self.target.client.call(api.ReleaseDraft(draft, keep=True), api.Nothing)

    def raw(self, image: Path) -> bytes:
        path = self.directory / "raw"
        run("qemu-img", "convert", "-O", "raw", image, path)
        return path.read_bytes()

    def snapshot(self) -> bytes:
        """The source as it is now, with E zeroed."""
        content = bytearray(self.raw(self.image))
        for item in self.excluded:
            content[item.start : item.end] = bytes(item.length)
        return bytes(content)

    def check(self) -> None:
        """Every point is what it was made from, and the digests of the newest are right, as its E is."""
        for point, image in self.images.items():
            assert self.raw(self.image_of(point)) == image, point
        assert self.former() == pack(self.excluded)
        found = self.verified(self.points[-1])
        assert (found.bad_count, found.problem, found.blocks) == (0, "", 16)

    def retire(self, *points: str) -> None:
        """These points are gone: what is above them is merged down."""
        self.attempt += 1
        request = api.RetirePoints(api.OwnedReplica(self.ref, attempt=self.attempt), points)
        self.wait(self.target, self.target.client.call(request, api.WorkStarted).work)
        for point in points:
            del self.images[point]

    def track(self) -> None:
        """Changes are tracked from now on."""
        run("qemu-img", "bitmap", "--clear", self.image, "b")


@pytest.fixture(scope="module")
def movers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MoverProcess, MoverProcess]]:
    base = tmp_path_factory.mktemp("movers")
    with (
        MoverProcess("source", base / "s", base / "source-state", base / "source.log") as source,
        MoverProcess("target", base / "t", base / "target-state", base / "target.log") as target,
    ):
        yield source, target


def make_lab(movers: tuple[MoverProcess, MoverProcess], place: Path, both: int, excluded: tuple[Extent, ...]) -> Masked:
    """A replica with one point; all of the source has data."""
    source, target = movers
    (place / "ds").mkdir(parents=True)
    image = make_image(place / "source.qcow2", SIZE)
    write(image, 1, (0, SIZE))
    made = Masked(source if both else target, target, place, image, excluded=excluded)
    made.replicate(FULL)
    add_bitmap(image, "b")
    return made


@pytest.fixture(params=["one mover", "two movers"])
def lab(request: pytest.FixtureRequest, movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> Masked:
    """A replica that leaves out three whole blocks and parts of two others."""
    return make_lab(movers, tmp_path, request.param == "two movers", parts(*range(6, 22)))


numbers = st.lists(st.tuples(st.integers(0, PARTS - 1), st.integers(1, 14)), max_size=4).map(
    lambda runs: parts(*(number for start, length in runs for number in range(start, min(start + length, PARTS)))))
acts = st.lists(st.tuples(st.sampled_from(["write", "zero", "discard", "lie"]), st.integers(0, SIZE // 512 - 1),
                          st.integers(1, 1200)), max_size=4)


@settings(max_examples=12)
@given(both=st.integers(0, 1), first=numbers, cycles=st.lists(
    st.tuples(acts, numbers, st.sampled_from([INCREMENTAL, INCREMENTAL, SCAN, FULL]),
              st.sampled_from(["chained", "chained", "standalone", "continued"]), acts, numbers),
    min_size=2, max_size=4))  # fmt: skip
def test_random_histories_are_the_snapshots_with_e_zeroed(
    movers: tuple[MoverProcess, MoverProcess], tmp_path_factory: pytest.TempPathFactory, both: int,
    first: tuple[Extent, ...], cycles: list[tuple[list[tuple[str, int, int]], tuple[Extent, ...], TransferMode, str,
                                                  list[tuple[str, int, int]], tuple[Extent, ...]]],
) -> None:
    place = tmp_path_factory.mktemp("history")
    lab = make_lab(movers, place, both, first)
    seed = 100
    for before, tried, mode, how, after, excluded in cycles:
        for act, sector, count in before:
            seed += 1
            change(lab.image, act, sector * 512, min(count * 512, SIZE - sector * 512), seed)
        lab.standalone = how == "standalone"
        if how == "continued":
            lab.excluded = tried
            lab.give_up(SCAN if any(act == "lie" for act, *_ in before) else INCREMENTAL, "b")
        for act, sector, count in after:
            seed += 1
            change(lab.image, act, sector * 512, min(count * 512, SIZE - sector * 512), seed)
        lab.excluded = excluded
        lab.replicate(FULL if lab.standalone else mode, "b" if mode is not FULL else "")
        lab.track()
        lab.check()
    lab.retire(*lab.points[:-1])
    lab.check()
    shutil.rmtree(place)


def change(image: Path, act: str, start: int, length: int, seed: int) -> None:
    match act:
        case "write":
            write(image, seed, (start, length))
        case "zero":
            io(image, f"write -z -u {start} {length}")
        case "discard":
            io(image, f"discard {start} {length}")
        case _:
            write(image, seed, (start, 512))  # so that there is something to lie about
            lie(image, start)


def test_what_is_left_out_is_zero_and_whole_blocks_of_it_are_not_read(
    movers: tuple[MoverProcess, MoverProcess], tmp_path: Path
) -> None:
    lab = make_lab(movers, tmp_path, 1, ())
    lab.excluded, lab.standalone = parts(*range(6, 22)), True
    progress = lab.replicate(FULL)
    lab.check()
    assert progress.read == SIZE - 3 * BLOCK
    assert progress.sent == SIZE - 16 * PART
    assert progress.processed == SIZE


@pytest.mark.parametrize("mode", [INCREMENTAL, SCAN])
def test_a_block_that_leaves_e_is_copied_though_nobody_wrote_to_it(lab: Masked, mode: TransferMode) -> None:
    lab.excluded = parts(*range(6, 10), *range(13, 22))
    progress = lab.replicate(mode, "b")
    lab.check()
    assert progress.sent == 3 * PART
    assert (lab.tried, progress.mismatched) == (None, 0)
    assert blocks_of_layer(lab.image_of(lab.points[-1])) == {2, 3}


@pytest.mark.parametrize("mode", [INCREMENTAL, SCAN])
def test_a_block_that_enters_e_becomes_zero_though_nobody_wrote_to_it(lab: Masked, mode: TransferMode) -> None:
    lab.excluded = parts(*range(4, 22), *range(40, 45), PARTS - 1)
    progress = lab.replicate(mode, "b")
    lab.check()
    assert progress.sent == 0
    assert (lab.tried, progress.mismatched) == (None, 0)


def test_what_the_guest_writes_into_e_neither_travels_nor_is_read_nor_makes_tracking_suspect(lab: Masked) -> None:
    write(lab.image, 2, (6 * PART, 16 * PART))
    progress = lab.replicate(INCREMENTAL, "b")
    lab.check()
    assert (progress.read, progress.sent, progress.mismatched) == (0, 0, 0)
    assert progress.checked == 16
    lie(lab.image, *range(8 * PART, 20 * PART, PART))
    assert lab.replicate(INCREMENTAL, "b").mismatched == 0
    assert lab.tried is None
    forced = lab.replicate(SCAN, "b")
    assert (forced.sent, forced.mismatched) == (0, 0)
    lab.check()


@pytest.mark.parametrize("mode", [INCREMENTAL, SCAN])
def test_damage_in_e_and_beside_it_is_found_and_repaired_with_zeros_and_what_is_kept(
    lab: Masked, mode: TransferMode
) -> None:
    damaged = lab.image_of(lab.points[0])
    inside, beside, outside = 10 * PART, 5 * PART, 28 * PART
    lie(damaged, beside, outside)
    show_another(damaged, inside // PART, outside // PART)
    assert lab.verified(lab.points[0]).bad_blocks == (1, 2, 7)
    del lab.images[lab.points[0]]
    lab.suspect = tuple(Extent(place // BLOCK * BLOCK, BLOCK) for place in (beside, inside, outside))
    progress = lab.replicate(mode, "b")
    lab.check()
    assert progress.sent == 6 * PART, "what is kept of the two blocks that are not all in E"
    assert blocks_of_layer(lab.image_of(lab.points[-1])) == {1, 2, 7}


def show_another(layer: Path, part: int, other: int) -> None:
    """Rot in the layer's second table: a part that has nothing there shows what another one has."""
    with layer.open("r+b") as handle:
        def entry(table_at: int, number: int) -> int:
            return int.from_bytes(os.pread(handle.fileno(), 8, table_at + 8 * number), "big")

        table = entry(entry(40, 0), 0) & ~(1 << 63)
        assert entry(table, part) == 0
        os.pwrite(handle.fileno(), entry(table, other).to_bytes(8, "big"), table + 8 * part)


def test_tracking_that_is_lost_in_the_session_leaves_out_the_same(lab: Masked) -> None:
    lab.excluded = parts(*range(4, 15))
    lie(lab.image, *range(24 * PART, 60 * PART, PART))
    lab.replicate(INCREMENTAL, "b")
    assert lab.tried is not None
    lab.check()


@pytest.mark.parametrize("now", [(), tuple(range(6, 22)), (7, 20, 60)])
def test_a_layer_that_is_continued_has_what_is_left_out_now(lab: Masked, now: tuple[int, ...]) -> None:
    write(lab.image, 2, (3 * PART, 30 * PART))
    lab.excluded = parts(*range(4, 12), *range(25, 35))
    lab.give_up(INCREMENTAL, "b")
    lab.excluded = parts(*now)
    lab.replicate(INCREMENTAL, "b")
    lab.check()


def test_what_the_point_of_older_tracking_left_out_is_copied_when_the_image_went_back_to_it(
    movers: tuple[MoverProcess, MoverProcess], tmp_path: Path
) -> None:
    """Its digests do not tell of it, nor does the map of an image that went back to that point."""
    lab = make_lab(movers, tmp_path, 0, parts(*range(6, 22)))
    first, then = lab.points[0], lab.image.with_suffix(".then")
    shutil.copy(lab.image, then)
    lab.once = lab.former()
    io(lab.image, f"write -z -u {6 * PART} {16 * PART}")
    lab.excluded = ()
    lab.replicate(INCREMENTAL, "b")
    lab.check()
    shutil.copy(then, lab.image)
    lab.target.client.copy_digests_to(lab.ref, api.DigestRef(lab.replica_id, "vda", first), lab.source.client)
    lab.since_point = first
    lab.replicate(INCREMENTAL, "b")
    assert lab.tried is None
    lab.check()


@pytest.mark.parametrize("packed", ["nonsense", pack([Extent(0, 512)]), pack([Extent(512, PART)]),
                                    pack([Extent(0, SIZE + 512)]), pack([Extent(63 * PART, PART)])])
def test_ranges_that_are_none_of_the_disk_are_refused(lab: Masked, packed: str) -> None:
    draft, point = lab.begin(chained=True)
    for field_name in ("excluded", "formerly_excluded", "once_excluded"):
        plain = api.ReadSpec(api.NbdSource("/nothing", "x", "d"), "vda", SIZE, INCREMENTAL, BLOCK, True, lab.replica_id,
                             lab.points[-1], point)
        read = replace(plain, **{field_name: packed})  # type: ignore[arg-type]
        send = api.SendDisk(read, api.TargetAddress("/n", "", "t"), lab.compression, 1, 1)
        for mover, request in ((lab.target, api.CopyDisk(read, draft)), (lab.source, send)):
            with pytest.raises(UsageError, match="leaves out"):
                mover.client.call(request, api.WorkStarted)
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)


def test_a_lost_or_damaged_file_of_e_is_an_error_and_the_scan_that_follows_is_right(lab: Masked) -> None:
    path = Path(lab.facts().images[lab.points[-1]]["vda"]).parent.parent / "points" / f"{lab.points[-1]}.excluded"
    assert path.stat().st_mode & 0o777 == 0o600
    good = path.read_bytes()
    flipped = good.replace(b'"mask"', b'"masc"')
    for damage in (good[:-40], b"", flipped, None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(ReplicaError, match=r"excluded is (missing|damaged)"):
            lab.former()
    (lost,) = lab.facts().losses[lab.points[-1]]
    assert lost.startswith("disk vda: what it leaves out is lost")
    lab.excluded = parts(*range(9, 30))
    lab.former = str  # type: ignore[method-assign]  # nothing is known of it
    lab.replicate(SCAN)
    del lab.former
    lab.check()


def test_a_point_that_leaves_out_nothing_has_no_file_and_one_that_is_not_there_is_not_found(lab: Masked) -> None:
    lab.excluded = ()
    lab.replicate(INCREMENTAL, "b")
    replica = lab.facts().replica
    assert replica is not None
    assert [point.excluded for point in replica.points] == [f"{lab.points[0]}.excluded", ""]
    with pytest.raises(NotFound):
        lab.target.client.call(api.ReadExclusions(lab.ref, "p9999"), api.PointExclusions)
