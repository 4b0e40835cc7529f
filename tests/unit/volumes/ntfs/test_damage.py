"""A damaged NTFS is refused, or what is left out of it lies where its own tables allow."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.volumes.ntfs.test_ranges import CACHE, opened
from tests.unit.volumes.ntfs.volumes import CLUSTER, RECORD, attribute_at, places, record_at
from tests.unit.volumes.whole_images import BytesImage, damaged, patched
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, merge, total
from understudy.volumes import Unfit, Wishes
from understudy.volumes.ntfs import open_ntfs

WISHES = Wishes(masks=CACHE, free=True, quiesced=True)
OWN_FILES = ("/$MFT", "/$MFTMirr", "/$LogFile", "/$UpCase", "/$AttrDef", "/$Boot", "/$Bitmap")


def test_damage_lets_out_nothing_that_the_tables_do_not_allow(data: bytes, volume: Path) -> None:
    """Bytes of the MFT, the bitmap, the boot sector and the indexes of directories change."""
    own = merge(sorted((item for path in OWN_FILES for item in places(volume, path)), key=lambda item: item.start))
    good = opened(data).find(WISHES).ranges
    targets = [places(volume, "/$Bitmap"), [Extent(0, 512)], places(volume, "/$MFT"), indexes(data), heads(data)]
    refusals = 0
    for seed in range(150):
        image = BytesImage(damaged(data, seed, targets[seed % len(targets)]))
        try:
            found = open_ntfs(image).find(WISHES).ranges
        except Unfit:
            refusals += 1
            continue
        every = sorted((item for items in found.values() for item in items), key=lambda item: item.start)
        assert all(item.start % CLUSTER == 0 and item.length % CLUSTER == 0 for item in every)
        assert total(merge(every)) == total(every)
        assert max((item.end for item in every), default=0) <= len(data)
        assert intersect(merge(every), own) == []
        assert total(found.get(Kind.SWAP, ())) <= total(good[Kind.SWAP])
    assert 40 < refusals < 150


@pytest.mark.parametrize("name", ["swapfile.sys", "stream.bin", "$Bitmap", "$MFT"])
@pytest.mark.parametrize("change", [
    (0, b"BAAD"),
    (22, b"\0\0"),           # not in use
    (510, b"zz"),            # mark of a sector
    (32, b"\x09"),           # continues another record
])  # fmt: skip
def test_a_record_that_is_not_right_condemns_the_volume(data: bytes, name: str, change: tuple[int, bytes]) -> None:
    at = record_at(data, name)
    with pytest.raises(Unfit):
        opened(patched(data, (at + change[0], change[1]))).find(WISHES)


@pytest.mark.parametrize("name", ["swapfile.sys", "stream.bin"])
def test_a_directory_that_names_a_file_that_is_gone_condemns_the_volume(data: bytes, name: str) -> None:
    at = record_at(data, name)
    with pytest.raises(Unfit):
        opened(patched(data, (at + 16, b"\xff\x7f"))).find(WISHES)


@pytest.mark.parametrize(("offset", "text"), [
    (24, struct.pack("<Q", 3)),       # last cluster
    (40, struct.pack("<Q", 4096)),    # allocated size
    (48, struct.pack("<Q", 1 << 40)), # size
    (64, b"\x00"),                    # no clusters
    (64, b"\x0f"),                    # clusters that make no sense
])  # fmt: skip
def test_a_file_whose_clusters_are_not_those_it_says_condemns_the_volume(data: bytes, offset: int, text: bytes) -> None:
    at = attribute_at(data, record_at(data, "swapfile.sys"), 0x80)
    with pytest.raises(Unfit):
        opened(patched(data, (at + offset, text))).find(WISHES)


def test_a_file_with_holes_that_counts_them_differently_is_kept(data: bytes, volume: Path) -> None:
    at = attribute_at(data, record_at(data, "holes.bin"), 0x80)
    finding = opened(patched(data, (at + 64, struct.pack("<Q", CLUSTER)))).find(WISHES)
    assert intersect(places(volume, "/Cache/holes.bin"), list(finding.ranges[Kind.MASK])) == []
    assert any(note.startswith("3 files") for note in finding.notes)


@pytest.mark.parametrize("name", ["swapfile.sys", "stream.bin"])
def test_a_file_with_more_names_than_it_has_condemns_the_volume(data: bytes, name: str) -> None:
    at = record_at(data, name)
    with pytest.raises(Unfit, match="names"):
        opened(patched(data, (at + 18, b"\2\0"))).find(WISHES)


def test_a_missing_part_of_the_attributes_condemns_the_volume(data: bytes) -> None:
    parts = [at for at in range(0, len(data), RECORD)
             if data[at : at + 4] == b"FILE" and any(data[at + 32 : at + 40]) and data[at + 22] & 1]  # fmt: skip
    assert len(parts) > 2
    for at in parts:
        with pytest.raises(Unfit):
            opened(patched(data, (at + 22, b"\0\0"))).find(WISHES)


@pytest.mark.parametrize(("offset", "text"), [
    (3, b"NTFZ"), (510, b"\0\0"), (11, b"\0\3"), (13, b"\0"), (13, b"\3"), (14, b"\1"), (64, b"\x01"), (64, b"\x80"),
    (40, struct.pack("<Q", 1 << 60)), (48, struct.pack("<Q", 1 << 40)), (56, struct.pack("<Q", 0)),
    (56, struct.pack("<Q", 9)),
])  # fmt: skip
def test_a_boot_sector_that_makes_no_sense_condemns_the_volume(data: bytes, offset: int, text: bytes) -> None:
    with pytest.raises(Unfit):
        opened(patched(data, (offset, text)))


@pytest.mark.parametrize("size", [0, 100, 512, 8192, 1 << 20])
def test_a_volume_that_ends_too_early_is_refused(data: bytes, size: int) -> None:
    with pytest.raises(Unfit):
        opened(data[:size])


def heads(data: bytes) -> list[Extent]:
    """The first bytes of the records of the files that are left out."""
    names = ("pagefile.sys", "swapfile.sys", "hiberfil.sys", "pieces.bin", "holes.bin", "c.bin")
    return [Extent(record_at(data, name), 420) for name in names]


def indexes(data: bytes) -> list[Extent]:
    """Blocks of directories' indexes."""
    return [Extent(at, CLUSTER) for at in range(0, len(data), CLUSTER) if data[at : at + 4] == b"INDX"]
