"""Which blocks a sample has, and what becomes of it: changes that tracking conceals are found, and counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mover.mover_lab import add_bitmap, io, lie, make_image, run, served, write
from understudy.context import Context
from understudy.errors import Cancelled, CbtMismatch
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover import sampling
from understudy.mover.api import NbdSource, ReadSpec
from understudy.mover.base import BaseDigests, PointDigests
from understudy.mover.copier import doubting
from understudy.mover.digest import CHUNK, DIGEST_BYTES, DigestHeader, DigestReader
from understudy.mover.meter import Counters, Meter
from understudy.mover.reader import Source
from understudy.mover.sampling import LEAST, OVERDRAW, check_sample, draw_blocks, sample_size
from understudy.mover.verify import rebuild_digests
from understudy.units import KIB

BLOCK = 64 * KIB
SIZE = 40 * BLOCK - 512
POINT = "p1"


def test_a_sample_has_a_thousandth_of_the_blocks_but_at_least_16() -> None:
    sizes = [sample_size(blocks) for blocks in (0, 1, 16, 17, 16_000, 16_001, 10_485_760)]
    assert sizes == [0, 1, 16, 16, 16, 17, 10486]


@dataclass(frozen=True)
class Array:
    """The digests of a disk of ``blocks`` blocks, of which those in ``data`` are not zero."""

    blocks: int
    data: frozenset[int]

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        step = CHUNK // DIGEST_BYTES
        for first in range(0, self.blocks, step):
            inside = [index for index in self.data if first <= index < first + step]
            if inside:
                chunk = bytearray(min(step, self.blocks - first) * DIGEST_BYTES)
                for index in inside:
                    chunk[(index - first) * DIGEST_BYTES : (index - first + 1) * DIGEST_BYTES] = b"digest of data!!"
                yield first * DIGEST_BYTES, bytes(chunk)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    blocks = draw(st.integers(0, 40_000))
    data = draw(st.sets(st.integers(0, max(0, blocks - 1)), max_size=100)) if blocks else set()
    if blocks and draw(st.booleans()):
        first = draw(st.integers(0, blocks - 1))
        data |= set(range(first, min(blocks, first + draw(st.integers(0, 9000)))))
    return Array(blocks, frozenset(data))


@settings(max_examples=150, deadline=None)
@given(arrays(), st.integers())
def test_drawn_blocks_are_distinct_enough_and_half_of_them_have_data(array: Array, seed: int) -> None:
    drawn = draw_blocks(array.blocks, array.chunks, random.Random(seed))
    assert len(drawn) == len(set(drawn)) == min(array.blocks, OVERDRAW * sample_size(array.blocks))
    assert all(0 <= index < array.blocks for index in drawn)
    assert len(array.data.intersection(drawn)) >= min(len(array.data), len(drawn) // 2)
    assert drawn == draw_blocks(array.blocks, array.chunks, random.Random(seed))


def test_every_block_may_be_drawn_and_none_is_preferred() -> None:
    array = Array(10_000, frozenset(range(4000, 4200)))
    dice = random.Random(1)
    drawn = [draw_blocks(array.blocks, array.chunks, dice) for _ in range(400)]
    first = [order[0] for order in drawn]
    assert 100 < sum(index in array.data for index in first) < 300  # the first one is half of the times one with data
    data = [index for order in drawn for index in order if index in array.data]
    assert set(data) == array.data
    assert 4095 < sum(data) / len(data) < 4105
    others = [index for order in drawn for index in order if index not in array.data]
    assert 4800 < sum(others) / len(others) < 5200


# --- on a real server -------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """An image with a dirty bitmap, and digests of what it was when tracking began."""

    directory: Path
    image: Path
    digests: Path

    @contextmanager
    def checking(
        self, suspect: tuple[Extent, ...] = ()
    ) -> Iterator[tuple[Source, ReadSpec, DigestReader, BaseDigests]]:
        with served(self.directory, self.image, bitmap="b") as where, DigestReader(self.digests) as base:
            mode = TransferMode.INCREMENTAL
            read = ReadSpec(where, "vda", SIZE, mode, BLOCK, True, "r", POINT, "p2", suspect=suspect)
            source = Source(where, SIZE, tracked=True)
            try:
                yield source, read, base, doubting(PointDigests(base, SIZE), read, base, None)
            finally:
                source.close()

    def check(self, suspect: tuple[Extent, ...] = (), ctx: Context | None = None) -> Counters:
        meter = Meter()
        with self.checking(suspect) as (source, read, base, content):
            check_sample(ctx or Context(), source, read, base, content, meter)
        return meter.sums()


def digests_of(where: NbdSource, path: Path) -> None:
    rebuild_digests(Context(), where, DigestHeader(POINT, SIZE, BLOCK), path, Meter())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    image = make_image(tmp_path / "source.qcow2", SIZE)
    write(image, 1, (0, 20 * BLOCK), (SIZE - 512, 512))
    with served(tmp_path, image) as where:
        digests_of(where, tmp_path / "base.digest")
    add_bitmap(image, "b")
    return Disk(tmp_path, image, tmp_path / "base.digest")


@pytest.fixture
def all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has every block."""
    monkeypatch.setattr(sampling, "LEAST", 40)


def test_an_honest_dirty_map_passes_and_dirty_blocks_do_not_count(disk: Disk) -> None:
    assert disk.check().checked == LEAST
    write(disk.image, 2, (0, 30 * BLOCK + 1))
    sums = disk.check()
    assert (sums.checked, sums.mismatched, sums.read) == (9, 0, 0)


@pytest.mark.usefixtures("all_blocks")
def test_every_clean_block_is_compared_if_the_sample_is_large_enough(disk: Disk) -> None:
    write(disk.image, 2, (3 * BLOCK + 512, 512))
    assert disk.check().checked == 39
    lie(disk.image, 5 * BLOCK, 7 * BLOCK + 1000, SIZE - 1)
    meter = Meter()
    with (
        disk.checking() as (source, read, base, content),
        pytest.raises(CbtMismatch, match="3 of 39 blocks that tracking calls unchanged have changed") as raised,
    ):
        check_sample(Context(), source, read, base, content, meter)
    assert (raised.value.reason, raised.value.code) == ("cbt_mismatch", "cbt_mismatch")
    assert (meter.sums().checked, meter.sums().mismatched) == (39, 3)


@pytest.mark.usefixtures("all_blocks")
def test_blocks_that_lost_or_got_their_data_are_found_without_reading_zeros(disk: Disk) -> None:
    io(disk.image, f"write -z -u 0 {BLOCK}", f"write -P 9 {30 * BLOCK} 512")
    for command in ("--remove", "--add"):  # as if nothing had been written since
        run("qemu-img", "bitmap", command, disk.image, "b")
    with pytest.raises(CbtMismatch, match="2 of 40"):
        disk.check()


@pytest.mark.usefixtures("all_blocks")
def test_suspect_blocks_prove_nothing_of_tracking(disk: Disk) -> None:
    lie(disk.image, 5 * BLOCK, 7 * BLOCK)
    assert disk.check((Extent(5 * BLOCK + 5, 1), Extent(7 * BLOCK, BLOCK))).checked == 38


def test_a_sample_ends_when_its_time_is_over(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_S", 0.0)
    assert disk.check().checked == 0


def test_a_sample_can_be_cancelled(disk: Disk) -> None:
    ctx = Context()
    ctx.cancel.cancel()
    with pytest.raises(Cancelled):
        disk.check(ctx=ctx)

