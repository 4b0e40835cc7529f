"""How the bytes of volumes are read from disks: cached, cut, put together, and mapped back."""

from __future__ import annotations

import random

import pytest

from understudy.errors import TransferError
from understudy.model.extent import Extent
from understudy.units import KIB, MIB
from understudy.volumes import Unfit
from understudy.volumes.image import BLOCK, MOST_AHEAD, CachedDisk, Piece, Pieces


class Disk:
    """Content in memory that counts how it is read."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads: list[tuple[int, int]] = []

    def read(self, view: memoryview, offset: int) -> None:
        self.reads.append((offset, len(view)))
        view[:] = self.content[offset : offset + len(view)]


def disk_of(size: int) -> Disk:
    return Disk(random.Random(size).randbytes(size))


def test_any_read_gives_what_is_on_the_disk_even_with_a_tiny_cache() -> None:
    disk = disk_of(5 * MIB + 700)
    image = CachedDisk(disk, len(disk.content), most=MIB)
    dice = random.Random(1)
    for _ in range(300):
        offset = dice.randrange(len(disk.content))
        length = dice.randrange(min(len(disk.content) - offset, 3 * MIB) + 1)
        assert image.read(offset, length) == disk.content[offset : offset + length]
        assert len(image._blocks) <= MIB // BLOCK


def test_what_was_read_is_not_read_again() -> None:
    disk = disk_of(2 * MIB)
    image = CachedDisk(disk, len(disk.content))
    for _ in range(3):
        image.read(BLOCK + 10, 20)
    assert disk.reads == [(BLOCK, BLOCK)]


def test_reads_that_follow_each_other_get_longer_and_none_is_longer_than_the_most() -> None:
    disk = disk_of(16 * MIB)
    image = CachedDisk(disk, len(disk.content))
    for offset in range(0, len(disk.content), 4 * KIB):
        image.read(offset, 4 * KIB)
    assert len(disk.reads) < 24
    assert max(length for _, length in disk.reads) == MOST_AHEAD


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (MIB, 1), (0, MIB + 1), (5, -1)])
def test_reads_outside_are_unfit(offset: int, length: int) -> None:
    disk = disk_of(MIB)
    image = CachedDisk(disk, MIB)
    for volume in (image, Pieces([Piece("vda", image, 0, MIB)])):
        with pytest.raises(Unfit, match="outside"):
            volume.read(offset, length)


def test_a_read_that_fails_is_unfit() -> None:
    class Broken:
        def read(self, view: memoryview, offset: int) -> None:
            raise TransferError("read", "the link is cut")

    with pytest.raises(Unfit, match="the link is cut"):
        CachedDisk(Broken(), MIB).read(0, 1)


def test_a_volume_over_several_disks_reads_in_order_and_maps_back() -> None:
    first, second = disk_of(2 * MIB), disk_of(3 * MIB)
    one, two = CachedDisk(first, 2 * MIB), CachedDisk(second, 3 * MIB)
    volume = Pieces([Piece("vdb", two, MIB, 100), Piece("vda", one, 50, 200), Piece("vdb", two, 0, 10)])
    whole = second.content[MIB : MIB + 100] + first.content[50:250] + second.content[:10]
    assert volume.size == 310
    for offset in range(0, 310, 7):
        assert volume.read(offset, 310 - offset) == whole[offset:]
    assert volume.on_disks([Extent(90, 215)]) == [
        ("vdb", Extent(MIB + 90, 10)), ("vda", Extent(50, 200)), ("vdb", Extent(0, 5))]
