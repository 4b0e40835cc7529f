"""A log that holds only superblocks, as of a frozen file system, may be passed over; any other change may not."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from google_crc32c import value

from tests.unit.volumes.xfs.images import MIB, FileImage, image_of, make, superblock, swap_bytes
from understudy.volumes import Wishes
from understudy.volumes.xfs import open_xfs

TREE = {"/kept": b"k" * 5000}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("xfs"), TREE)


def ring(image: Path) -> int:
    """Where the log begins."""
    sb = superblock(image)
    group, block = sb["logstart"] >> sb["agblklog"], sb["logstart"] & (1 << sb["agblklog"]) - 1
    return (group * sb["agblocks"] + block) * sb["blocksize"]


def operation(flags: int, data: bytes = b"") -> bytes:
    return struct.pack(">IIBBH", 77, len(data), 0x69, flags, 0) + data


def buffer(data: bytes, *, kind: int = 0x123C, block: int = 0, flags: int = 0, chunks: int = 0b1111) -> list[bytes]:
    """A logged buffer of one sector, as its two regions."""
    return [struct.pack("<HHHHqII", kind, 2, flags, 1, block, 1, chunks), data]


def logged_inode(number: int, *, length: int = 56) -> list[bytes]:
    """A change of an inode's core, as its two regions."""
    return [struct.pack("<HHIHHIQ", 0x123B, 2, 1, 0, 0, 0, number).ljust(length, b"\0"), b"c" * 176]


def inode_at(image: Path, number: int, lsn: int) -> dict[int, bytes]:
    """The inode on disk, as if it had been written when the log was at a place."""
    sb = superblock(image)
    bits = sb["agblklog"] + sb["inopblog"]
    block, inside = divmod(number & (1 << bits) - 1, 1 << sb["inopblog"])
    place = ((number >> bits) * sb["agblocks"] + block) * sb["blocksize"] + inside * sb["inodesize"]
    raw = bytearray(image_of(image).read(place, sb["inodesize"]))
    raw[112:120] = lsn.to_bytes(8, "big")
    raw[100:104] = bytes(4)
    raw[100:104] = value(bytes(raw)).to_bytes(4, "little")
    return {place: bytes(raw)}


def record(image: Path, regions: Sequence[bytes], *, tail: int = 2, flags: int = 0) -> bytes:
    """A record in sector 2, behind that of mkfs, which holds one transaction."""
    header = operation(0, struct.pack("<IIII", 0x5452414E, 40, 77, len(regions) // 2))
    operations = [operation(1), header, *(operation(flags, region) for region in regions), operation(2)]
    whole = b"".join(operations)
    body = bytearray(whole.ljust(-(-len(whole) // 512) * 512, b"\0"))
    words = b""
    for at in range(0, len(body), 512):
        words += body[at : at + 4]
        body[at : at + 4] = struct.pack(">I", 1)
    user = image_of(image).read(32, 16)
    head = struct.pack(">IIIIQQIII", 0xFEEDBABE, 1, 2, len(body), 1 << 32 | 2, 1 << 32 | tail, 0, 0, len(operations))
    head = (head + words.ljust(256, b"\0") + struct.pack(">I16sI", 1, user, 32768)).ljust(512, b"\0")
    return head[:32] + struct.pack("<I", value(head[:328] + bytes(body))) + head[36:] + bytes(body)


def notes(image: Path, raw: bytes, besides: Mapping[int, bytes] | None = None) -> tuple[str, ...]:
    found = open_xfs(FileImage(image, {ring(image) + 1024: raw, **(besides or {})})).find(Wishes(free=True))
    assert bool(found.ranges) is not bool(found.notes)
    return found.notes


def changed(sector: bytes, at: int) -> bytes:
    return sector[:at] + bytes([sector[at] ^ 1]) + sector[at + 1 :]


def test_only_superblocks_that_say_the_same_are_passed_over(image: Path) -> None:
    sector = image_of(image).read(0, 512)
    assert notes(image, record(image, buffer(sector))) == ()
    assert notes(image, record(image, buffer(changed(sector, 151)))) == ()
    assert notes(image, record(image, buffer(sector[128:256], chunks=0b10))) == ()
    assert notes(image, record(image, buffer(sector) * 2)) == ()


def test_a_superblock_that_says_something_else_is_not(image: Path) -> None:
    sector = image_of(image).read(0, 512)
    for at in (11, 87, 91, 103, 219, 223, 255):
        assert "not on disk" in notes(image, record(image, buffer(changed(sector, at))))[0]


@pytest.mark.parametrize("wrong", ["block", "kind", "cancelled", "map", "length", "no regions", "torn", "continued"])
def test_anything_else_is_not(image: Path, wrong: str) -> None:
    sector = image_of(image).read(0, 512)
    raw = record(image, {
        "block": buffer(sector, block=8),
        "kind": buffer(sector, kind=0x123B),
        "cancelled": buffer(sector, flags=2),
        "map": buffer(sector, chunks=0b11111),
        "length": buffer(sector[:256]),
        "no regions": buffer(sector)[:1],
        "torn": buffer(sector),
        "continued": buffer(sector),
    }[wrong], flags=4 if wrong == "continued" else 0)  # fmt: skip
    if wrong == "torn":
        raw = changed(raw, 700)
    assert "log" in notes(image, raw)[0]


@pytest.mark.parametrize(("lsn", "harmless"), [(1 << 32 | 2, True), (1 << 32 | 1, False), (1 << 32 | 3, False)])
def test_a_change_of_an_inode_is_passed_over_only_if_the_inode_on_disk_has_it(
    image: Path, lsn: int, harmless: bool
) -> None:
    """One from behind the end of the log is of another life of the file system."""
    sector, root = image_of(image).read(0, 512), superblock(image)["rootino"]
    on_disk = inode_at(image, root, lsn)
    for regions in (logged_inode(root), logged_inode(root) + buffer(sector), buffer(sector) + logged_inode(root)):
        assert bool(notes(image, record(image, regions), on_disk)) is not harmless
    assert notes(image, record(image, logged_inode(root) + buffer(changed(sector, 11))), on_disk)
    assert notes(image, record(image, logged_inode(root, length=52)), on_disk)
    assert notes(image, record(image, logged_inode(root)[:1]), on_disk)


def test_a_change_of_an_inode_that_is_not_there_or_damaged_is_not_on_disk(image: Path) -> None:
    root = superblock(image)["rootino"]
    assert notes(image, record(image, logged_inode(root + 1000)))
    assert notes(image, record(image, logged_inode(1 << 60)))
    ((place, raw),) = inode_at(image, root, 1 << 32 | 2).items()
    assert notes(image, record(image, logged_inode(root)), {place: changed(raw, 20)})


def test_everything_from_the_tail_on_is_looked_at(image: Path) -> None:
    sector = image_of(image).read(0, 512)
    assert notes(image, record(image, buffer(sector), tail=0))  # the record of mkfs is no transaction
    assert notes(image, record(image, buffer(sector), tail=1))
    assert notes(image, record(image, buffer(sector), tail=90))


def test_a_guest_that_sleeps_is_noticed_though_its_log_is_not_empty(tmp_path: Path) -> None:
    image = make(tmp_path, {"/swapfile": swap_bytes(MIB, signature=b"S1SUSPEND\0")})
    dirty = FileImage(image, {ring(image) + 1024: record(image, buffer(image_of(image).read(0, 512)), tail=0)})
    for wishes in (Wishes(), Wishes(swap=False)):
        found = open_xfs(dirty).find(wishes)
        assert (found.asleep, found.ranges) == (True, {})
        assert "log" in found.notes[0]


def test_a_write_that_overtook_another_one_is_noticed(image: Path) -> None:
    raw = record(image, buffer(image_of(image).read(0, 512)))
    assert "being written" in notes(image, raw.ljust(512 * 40, b"\0") + b"\0\0\0\1")[0]
