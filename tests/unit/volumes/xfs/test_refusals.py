"""A file system that is damaged, unknown, or not surely current yields nothing."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from google_crc32c import value

from tests.unit.volumes.xfs.images import (
    MIB,
    FileImage,
    blocks_of,
    free_blocks,
    image_of,
    make,
    superblock,
    swap_bytes,
    xfs_db,
)
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, merge, subtract, unite
from understudy.volumes import Unfit, Wishes
from understudy.volumes.masks import Masks
from understudy.volumes.xfs import open_xfs

ALL = Wishes(masks=Masks(["/cache/"]), free=True)
TREE = {
    "/swapfile": swap_bytes(MIB),
    **{f"/cache/{number:03d}-with-a-long-name": b"c" * 5000 for number in range(300)},
    **{f"/kept/{number}": b"k" * 5000 for number in range(40)},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("xfs"), TREE)


def changed(image: Path, place: int, new: bytes, block: Extent | None = None, crc: int = 0) -> FileImage:
    """The image with other bytes, and the checksum of the block that holds them made right again."""
    if block is None:
        return FileImage(image, {place: new})
    data = bytearray(FileImage(image, {place: new}).read(block.start, block.length))
    data[crc : crc + 4] = bytes(4)
    return FileImage(image, {place: new, block.start + crc: struct.pack("<I", value(bytes(data)))})


def refusal(image: FileImage) -> str:
    with pytest.raises(Unfit) as refused:
        open_xfs(image).find(ALL)
    return str(refused.value)


@pytest.mark.parametrize(("place", "new", "why"), [
    (100, b"\xb4\xb4", "V4"),
    (219, bytes([0x1B]), "repaired"),
    *((218, bytes([bit]), "features") for bit in (1, 2)),
    *((219, bytes([bit | 0xB]), "features") for bit in (0x40, 0x80)),
    (215, b"\x1d", "features"),
    (211, b"\x01", "features"),
    (223, b"\x01", "features"),
    (101, b"\xf5", None),
    (23, b"\x01", "realtime"),
    (48, bytes(8), "another device"),
    (126, b"\x01", "never completed"),
    (8, b"\x01", "larger than its volume"),
    (88, b"\x00\x00\x10\x00", "impossible"),
    (84, b"\x00\x00\x00\x01", "impossible"),
    (48, b"\x01", "lacks"),
])  # fmt: skip
def test_a_superblock_that_is_not_known_is_refused(image: Path, place: int, new: bytes, why: str | None) -> None:
    if why:
        assert why in refusal(changed(image, place, new, Extent(0, 512), 224))
    assert refusal(changed(image, place, b"\xff" if new != b"\xff" else b"\xfe"))


def test_a_volume_that_was_cut_is_refused(image: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    subprocess.run(["cp", "--sparse=always", image, cut], check=True)
    with cut.open("r+b") as handle:
        handle.truncate(image.stat().st_size - MIB)
    assert "larger" in refusal(image_of(cut))


def metadata(image: Path) -> list[Extent]:
    """The blocks that are in use and are no file's."""
    files = [item for name in TREE for item in blocks_of(image, name)]
    others = unite(merge(sorted(files, key=lambda item: item.start)), free_blocks(image))
    sb = superblock(image)
    log = Extent((sb["logstart"] >> sb["agblklog"]) * sb["agblocks"] * 4096
                 + (sb["logstart"] & (1 << sb["agblklog"]) - 1) * 4096, sb["logblocks"] * 4096)  # fmt: skip
    return subtract([Extent(0, sb["dblocks"] * 4096)], unite(others, [log]))


def test_a_damaged_image_is_refused_or_still_right(image: Path) -> None:
    places = metadata(image)
    kept = [item for name in TREE if name.startswith("/kept") for item in blocks_of(image, name)]
    kept = merge(sorted([*kept, *places], key=lambda item: item.start))
    refused = 0
    dice = random.Random(20)
    for _ in range(150):
        spots = [dice.choice(places) for _ in range(60)]
        damage = {item.start + dice.randrange(item.length): dice.randbytes(1) for item in spots}
        try:
            found = open_xfs(FileImage(image, damage)).find(ALL)
        except Unfit:
            refused += 1
            continue
        for ranges in found.ranges.values():
            assert intersect(ranges, kept) == []
    assert refused > 100


def test_wrong_metadata_with_right_checksums_is_refused(image: Path) -> None:
    """Every field of the group headers and of the free space's tree, one by one."""
    dice = random.Random(21)
    free = Extent(superblock(image)["blocksize"], 4096)
    right = open_xfs(image_of(image)).find(ALL)
    for block, crc, most in [(Extent(512, 512), 216, 60), (Extent(1024, 512), 312, 32), (free, 52, 72)]:
        for at in range(0, most, 4):
            new = dice.randbytes(4)
            wrong = changed(image, block.start + at, new, block, crc)
            try:
                found = open_xfs(wrong).find(ALL)
            except Unfit:
                continue
            assert found.ranges == right.ranges, at


def inode_of(image: Path, path: str) -> Extent:
    """Where a file's inode lies."""
    sb = superblock(image)
    number = int(xfs_db(image, f"path {path}", "p v3.inumber").split("=")[1])
    group, inside = divmod(number, 1 << sb["agblklog"] + sb["inopblog"])
    start = (group * sb["agblocks"] + inside // sb["inopblock"]) * sb["blocksize"]
    return Extent(start + inside % sb["inopblock"] * sb["inodesize"], sb["inodesize"])


def test_a_root_directory_that_is_its_own_child_is_refused(image: Path) -> None:
    root = inode_of(image, "/")
    at = root.start + image_of(image).read(root.start, root.length).index(b"cache") + len(b"cache") + 1
    wrong = changed(image, at, struct.pack(">I", superblock(image)["rootino"]), root, 100)
    assert "two XFS directories" in refusal(wrong)


@pytest.mark.parametrize("number", ["none", "rbmino"])
def test_a_name_of_no_file_is_refused(image: Path, number: str) -> None:
    root = inode_of(image, "/")
    at = root.start + image_of(image).read(root.start, root.length).index(b"swapfile") + len(b"swapfile") + 1
    new = struct.pack(">I", superblock(image).get(number, 0x7FFFFFFF))
    assert "no file's" in refusal(changed(image, at, new, root, 100))


@pytest.mark.parametrize("kind", ["superblock", "free space", "inodes", "reserve", "tree", "inode", "directory"])
def test_a_wrong_checksum_condemns_all(image: Path, kind: str) -> None:
    """The byte that is wrong is one that is not looked at."""
    place = {
        "superblock": 130,
        "free space": 512 + 200,
        "inodes": 1024 + 340,
        "reserve": 1536 + 500,
        "tree": 4096 + 4000,
        "inode": inode_of(image, "/cache/007-with-a-long-name").start + 40,
        "directory": directory_of(image).start + 62,
    }[kind]
    byte = image_of(image).read(place, 1)[0]
    assert "checksum" in refusal(FileImage(image, {place: bytes([byte ^ 1])}))


def directory_of(image: Path) -> Extent:
    """The first block of the directory of 300 names."""
    found = xfs_db(image, "path /cache", "bmap")
    group, block = (int(part) for part in found.split("(")[1].split(")")[0].split("/"))
    return Extent((group * superblock(image)["agblocks"] + block) * 4096, 4096)


@pytest.mark.parametrize("at", [8, 24, 40])
def test_a_directory_block_of_another_place_or_owner_is_refused(image: Path, at: int) -> None:
    block = directory_of(image)
    new = b"\7" * 8
    assert "not a block of directory" in refusal(changed(image, block.start + at, new, block, 4))


@pytest.mark.parametrize("at", [0, 4, 16, 32, 48])
def test_a_tree_block_of_another_place_or_owner_is_refused(image: Path, at: int) -> None:
    root = Extent(4096, 4096)
    assert "not the tree block" in refusal(changed(image, root.start + at, b"\7\7", root, 52))


def test_a_wrong_count_of_free_blocks_is_refused(image: Path) -> None:
    count = int.from_bytes(image_of(image).read(512 + 52, 4), "big")
    wrong = changed(image, 512 + 52, struct.pack(">I", count - 1), Extent(512, 512), 216)
    assert "its header counts" in refusal(wrong)


def test_a_tree_that_leads_to_the_same_leaf_twice_is_refused(image: Path) -> None:
    """A root of a second level is put into a free block; both of its pointers lead to the old root."""
    place = free_blocks(image)[0]
    node = bytearray(image_of(image).read(4096, 4096))
    node[4:8] = struct.pack(">HH", 1, 2)
    node[16:24] = struct.pack(">Q", place.start // 512)
    pointers = 56 + (4096 - 56) // 12 * 8
    node[pointers : pointers + 8] = struct.pack(">II", 1, 1)
    node[52:56] = bytes(4)
    node[52:56] = struct.pack("<I", value(bytes(node)))
    header = bytearray(image_of(image).read(512, 512))
    header[16:20], header[28:32], header[216:220] = struct.pack(">I", place.start // 4096), b"\0\0\0\2", bytes(4)
    header[216:220] = struct.pack("<I", value(bytes(header)))
    assert "circle" in refusal(FileImage(image, {512: bytes(header), place.start: bytes(node)}))


def test_a_swap_file_whose_header_was_never_written_stays(image: Path) -> None:
    inode = inode_of(image, "/swapfile")
    wrong = changed(image, inode.start + 176, b"\x80", inode, 100)
    assert Kind.SWAP not in open_xfs(wrong).find(ALL).ranges


def address(image: Path, place: int) -> int:
    """A block number as extents have it."""
    sb = superblock(image)
    group, block = divmod(place // sb["blocksize"], sb["agblocks"])
    return group << sb["agblklog"] | block


def reserve_of(image: Path) -> Extent:
    """The first block of the first group's reserve."""
    first = int.from_bytes(image_of(image).read(512 + 40, 4), "big")
    return Extent(int.from_bytes(image_of(image).read(1536 + 36 + 4 * first, 4), "big") * 4096, 4096)


@pytest.mark.parametrize(("target", "why"), [
    ("another", "two files claim"),
    ("free", "claims the metadata"),
    ("inodes", "claims the metadata"),
    ("header", "claims the metadata"),
    ("log", "claims the metadata"),
    ("tree", "claims the metadata"),
    ("reserve", "claims the metadata"),
    ("behind", "lacks"),
])  # fmt: skip
def test_a_file_that_claims_what_is_not_its_own_is_refused(image: Path, target: str, why: str) -> None:
    inode = inode_of(image, "/cache/007-with-a-long-name")
    sb = superblock(image)
    place = {
        "another": blocks_of(image, "/cache/008-with-a-long-name")[0].start,
        "free": free_blocks(image)[-1].start,
        "inodes": inode.start // 4096 * 4096,
        "header": sb["agblocks"] * sb["blocksize"],
        "log": log_start(image),
        "tree": 4096,
        "reserve": reserve_of(image).start,
        "behind": (sb["dblocks"] - 1) * sb["blocksize"],
    }[target]
    extent = struct.pack(">QQ", address(image, place) >> 43, (address(image, place) & (1 << 43) - 1) << 21 | 2)
    assert why in refusal(changed(image, inode.start + 176, extent, inode, 100))


@pytest.mark.parametrize(("at", "new", "why"), [
    (64, bytes(7) + b"\1", "counts"),
    (79, b"\2", "not in order"),
    (183, b"\2", "not in order"),
    (4, b"\2", "not inode"),
    (159, b"\0", "not inode"),
    (160, b"\0\0", "not inode"),
    (127, b"\x28", "flags"),
    (2, b"\x41", "should be a file"),
    (5, b"\1", "damaged"),
    (82, b"\xff", "damaged"),
])  # fmt: skip
def test_a_wrong_inode_is_refused(image: Path, at: int, new: bytes, why: str) -> None:
    inode = inode_of(image, "/cache/007-with-a-long-name")
    if at == 183:
        new = bytes(8) + bytes(8)
        at = 176
    assert why in refusal(changed(image, inode.start + at, new, inode, 100))


@pytest.mark.parametrize(("at", "new", "why"), [
    (19, b"\2", "several names"),
    (91, b"\1", "another device"),
    (127, b"\x0a", "share blocks"),
])  # fmt: skip
def test_a_file_that_is_not_alone_in_its_blocks_stays(image: Path, at: int, new: bytes, why: str) -> None:
    path = "/cache/007-with-a-long-name"
    inode = inode_of(image, path)
    found = open_xfs(changed(image, inode.start + at, new, inode, 100)).find(ALL)
    assert intersect(found.ranges[Kind.MASK], blocks_of(image, path)) == []
    assert why in found.notes[0]
    assert found.notes[0].startswith("1 file")


def log_start(image: Path) -> int:
    sb = superblock(image)
    group, block = sb["logstart"] >> sb["agblklog"], sb["logstart"] & (1 << sb["agblklog"]) - 1
    return (group * sb["agblocks"] + block) * sb["blocksize"]


@pytest.mark.parametrize(("at", "new"), [
    (4, b"\0\0\0\2"),
    (0, b"\0\0\0\1"),
    (16, b"\0\0\0\7"),
    (304, b"other"),
    (512 + 9, b"\0"),
    (4 * 512, b"\0\0\0\1"),
    (1000 * 512, b"\0\0\0\1"),
], ids=["cycle", "no record", "place", "owner", "flags", "later", "much later"])  # fmt: skip
def test_a_log_that_does_not_end_with_an_unmount_yields_nothing(image: Path, at: int, new: bytes) -> None:
    found = open_xfs(FileImage(image, {log_start(image) + at: new})).find(ALL)
    assert found.ranges == {}
    assert found.candidates == {}
    assert "log" in found.notes[0]


def test_a_clean_log_yields_all(image: Path) -> None:
    assert set(open_xfs(image_of(image)).find(ALL).ranges) == set(Kind)
