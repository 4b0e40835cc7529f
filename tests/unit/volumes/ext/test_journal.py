"""The replay in memory gives what e2fsck's replay gives, for every kind of journal.

A wrong checksum is never replayed.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path

import pytest

from tests.unit.volumes.ext.images import FileImage, MemoryImage, block_size, debugfs, make_image, make_tree, run
from understudy.model.extent import intersect
from understudy.volumes import Unfit, Wishes
from understudy.volumes.ext import open_ext
from understudy.volumes.ext.checksums import START, crc32_be, crc32c
from understudy.volumes.ext.filesystem import ExtFileSystem
from understudy.volumes.ext.groups import Groups
from understudy.volumes.ext.superblock import read_superblock
from understudy.volumes.masks import Masks

MAGIC = b"\xc0\x3b\x39\x98"
JOURNALS = {
    "v3": (("-t", "ext4"), "-c -v 3"),
    "v3-4k": (("-t", "ext4", "-b", "4096"), "-c -v 3"),
    "v3-narrow": (("-t", "ext4", "-O", "^64bit"), "-c -v 3"),
    "v2": (("-t", "ext4"), "-c -v 2"),
    "v2-narrow-4k": (("-t", "ext4", "-b", "4096", "-O", "^64bit"), "-c -v 2"),
    "no-sums": (("-t", "ext4", "-O", "^metadata_csum"), ""),
    "no-sums-4k": (("-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit"), ""),
    "ext3": (("-t", "ext3"), ""),
}


def make_busy(place: Path, options: tuple[str, ...], how: str, *, old_sums: bool = False) -> Path:
    """A file system whose journal holds committed writes, revokes, blocks that look like the journal's, and a torso."""
    image = make_image(place, make_tree(place, files=20), "-J", "size=4", *options)
    size = block_size(image)
    first = free_run(image, 700)
    chance = random.Random(3)
    for name, count in (("one", 600), ("two", 300), ("three", 5)):
        blocks = [chance.randbytes(size) for _ in range(count)]
        for index in range(0, count, 3):
            blocks[index] = MAGIC + blocks[index][4:]
        (place / name).write_bytes(b"".join(blocks))
    debugfs(
        image,
        f"jo {how}",
        f"jw -b {first}-{first + 599} {place}/one",
        f"jw -b {first + 1}-{first + 300} {place}/two",
        f"jw -r {first + 20}-{first + 29},{first + 500}-{first + 509}",
        f"jw -b {first + 500}-{first + 504} {place}/three",
        f"jw -c -b {first + 100}-{first + 104} {place}/three",
        "jc",
        write=True,
    )
    return image


def free_run(image: Path, count: int) -> int:
    """The first of as many free blocks, one behind the other."""
    for first, last in re.findall(r"(\d+)-(\d+)", "".join(re.findall("  Free blocks: .*", run("dumpe2fs", image)))):
        if int(last) - int(first) >= count:
            return int(first)
    raise AssertionError("the image is too small")


def opened(image: FileImage | MemoryImage) -> ExtFileSystem:
    found = open_ext(image)
    assert isinstance(found, ExtFileSystem)
    return found


def journal_places(image: Path) -> list[int]:
    """The blocks of the journal, in order, without those of its map."""
    text = debugfs(image, "blocks <8>").split("\n", 1)[1]
    found = [int(number) for number in text.split()]
    size = block_size(image)
    head = next(i for i, block in enumerate(found) if image.read_bytes()[block * size : block * size + 4] == MAGIC)
    return found[head:]


def require_same_as_e2fsck(image: Path, work: Path) -> None:
    """But for the superblocks of the file system and of the journal, which a replay changes by itself."""
    truth = work / "truth"
    shutil.copy(image, truth)
    run("e2fsck", "-y", "-E", "journal_only", truth, allowed=(0, 1))
    seen = bytearray(opened(FileImage(image))._image.read(0, image.stat().st_size))
    want = bytearray(truth.read_bytes())
    assert seen != image.read_bytes()
    size = block_size(image)
    journal = journal_places(image)[0] * size
    for data in (seen, want):
        data[1024:2048] = bytes(1024)
        data[journal : journal + size] = bytes(size)
    differing = [at // size for at in range(0, len(want), size) if seen[at : at + size] != want[at : at + size]]
    assert differing == []


@pytest.mark.parametrize(("options", "how"), JOURNALS.values(), ids=JOURNALS.keys())
def test_the_replay_is_that_of_e2fsck(tmp_path: Path, options: tuple[str, ...], how: str) -> None:
    require_same_as_e2fsck(make_busy(tmp_path, options, how), tmp_path)


@pytest.mark.parametrize("how", ["v3", "v2-narrow-4k", "no-sums"])
def test_a_log_that_goes_round_the_end_is_replayed_too(tmp_path: Path, how: str) -> None:
    image = make_busy(tmp_path, *JOURNALS[how])
    size, blocks = block_size(image), journal_places(image)
    data = bytearray(image.read_bytes())
    head = data[blocks[0] * size : (blocks[0] + 1) * size]
    length, first, _, start = struct.unpack_from(">IIII", head, 16)
    ring = [bytes(data[block * size : (block + 1) * size]) for block in blocks[first:length]]
    # Some blocks before its end, so that the first descriptor's data is cut in two.
    turn = length - start - 50
    for index, content in enumerate(ring):
        block = blocks[first + (index + turn) % len(ring)]
        data[block * size : (block + 1) * size] = content
    struct.pack_into(">I", head, 28, first + (start - first + turn) % len(ring))
    seal(head)
    data[blocks[0] * size : (blocks[0] + 1) * size] = head
    image.write_bytes(data)
    require_same_as_e2fsck(image, tmp_path)


def seal(head: bytearray) -> None:
    """Give a journal's superblock its checksum."""
    head[0xFC:0x100] = bytes(4)
    struct.pack_into(">I", head, 0xFC, crc32c(START, bytes(head[:1024])) if head[0x2B] & 0x18 else 0)


@pytest.mark.parametrize("kind", ["v3", "v2"])
def test_no_changed_block_of_a_summed_journal_is_replayed(tmp_path: Path, kind: str) -> None:
    """Data that is revoked is not looked at, as by the kernel; all else condemns the volume."""
    image = make_busy(tmp_path, *JOURNALS[kind])
    size, blocks = block_size(image), journal_places(image)
    data = bytearray(image.read_bytes())
    start = struct.unpack_from(">I", data, blocks[0] * size + 28)[0]
    whole = opened(MemoryImage(data))._image.read(0, len(data))
    refused = 0
    for index in range(start, start + 920, 5):
        at = blocks[index] * size + 100
        data[at] ^= 1
        try:
            seen = bytearray(opened(MemoryImage(data))._image.read(0, len(data)))
            seen[at] ^= 1
            assert seen == whole
        except Unfit:
            refused += 1
        data[at] ^= 1
    # One block in five is tried, and six of these are revoked: the kernel does not look at them.
    assert refused == 178


def test_damage_of_a_journal_without_sums_ends_in_a_refusal_or_in_ranges_that_keep_the_rules(tmp_path: Path) -> None:
    """Nothing but the blocks' own sense tells that they are damaged."""
    image = make_busy(tmp_path, *JOURNALS["no-sums"])
    size, blocks, pristine = block_size(image), journal_places(image), image.read_bytes()
    heads = [block * size for block in blocks[:1000] if pristine[block * size : block * size + 4] == MAGIC]
    metadata = Groups(FileImage(image), read_superblock(FileImage(image))).metadata()
    chance, refused = random.Random(9), 0
    for _ in range(40):
        data = bytearray(pristine)
        for _ in range(chance.choice((1, 5, 30))):
            data[chance.choice(heads) + chance.randrange(chance.choice((64, size)))] = chance.randrange(256)
        try:
            found = open_ext(MemoryImage(data)).find(Wishes(masks=Masks(["/skip/**"]), free=True))
        except Unfit:
            refused += 1
            continue
        for ranges in found.ranges.values():
            assert all(item.start % size == 0 and item.end <= len(data) for item in ranges)
            assert not intersect(ranges, metadata)
    assert refused


def test_a_journal_with_old_sums_is_verified(tmp_path: Path) -> None:
    image = make_busy(tmp_path, *JOURNALS["no-sums"])
    size, blocks = block_size(image), journal_places(image)
    data = bytearray(image.read_bytes())
    head = blocks[0] * size
    data[head + 0x27] |= 1
    seal_commits(data, size, blocks)
    opened(MemoryImage(data)).find(Wishes())
    start = struct.unpack_from(">I", data, head + 28)[0]
    data[blocks[start + 5] * size] ^= 1
    with pytest.raises(Unfit, match="checksum of a transaction"):
        opened(MemoryImage(data))


def seal_commits(data: bytearray, size: int, blocks: list[int]) -> None:
    """Give every commit block the old kind of sum, over descriptors and what follows them."""
    index = struct.unpack_from(">I", data, blocks[0] * size + 28)[0]
    running, expected = START, None
    while True:
        raw = bytes(data[blocks[index] * size : (blocks[index] + 1) * size])
        kind, sequence = struct.unpack_from(">II", raw, 4)
        if raw[:4] != MAGIC or (expected not in {None, sequence}):
            return
        expected = sequence
        if kind == 2:
            data[blocks[index] * size + 12 : blocks[index] * size + 14] = b"\x01\x04"
            struct.pack_into(">I", data, blocks[index] * size + 16, running)
            running, expected = START, sequence + 1
        elif kind == 1:
            at, count, flags = 12, 0, 0
            while not flags & 8:
                flags = struct.unpack_from(">H", raw, at + 6)[0]
                at += 12 + (0 if flags & 2 else 16)
                count += 1
                if at + 12 > size:
                    break
            for step in range(count + 1):
                block = blocks[index + step] * size
                running = crc32_be(running, bytes(data[block : block + size]))
            index += count
        index += 1


def test_old_sums_are_those_of_the_kernel() -> None:
    # crc32_be of the kernel's own self-test kind: "123456789", not inverted (CRC-32/MPEG-2).
    assert crc32_be(START, b"123456789") == 0x0376E6E7


def test_a_journal_that_is_not_empty_without_the_mark_is_refused(tmp_path: Path) -> None:
    image = make_busy(tmp_path, *JOURNALS["no-sums"])
    debugfs(image, "feature -needs_recovery", write=True)
    with pytest.raises(Unfit, match="not empty"):
        opened(FileImage(image))


def test_fast_commits_and_journals_elsewhere_are_refused(tmp_path: Path) -> None:
    image = make_busy(tmp_path, *JOURNALS["no-sums"])
    debugfs(image, "feature fast_commit", write=True)
    with pytest.raises(Unfit, match="fast commits"):
        opened(FileImage(image))
    debugfs(image, "ssv journal_inum 0", write=True)
    with pytest.raises(Unfit, match="another device"):
        opened(FileImage(image))


def test_a_journal_may_not_write_to_itself_or_outside(tmp_path: Path) -> None:
    image = make_busy(tmp_path, *JOURNALS["no-sums"])
    size, blocks = block_size(image), journal_places(image)
    data = bytearray(image.read_bytes())
    start = struct.unpack_from(">I", data, blocks[0] * size + 28)[0]
    for block in (blocks[2000], len(data) // size):
        struct.pack_into(">I", data, blocks[start] * size + 12, block)
        with pytest.raises(Unfit, match="not its to write"):
            opened(MemoryImage(data))
