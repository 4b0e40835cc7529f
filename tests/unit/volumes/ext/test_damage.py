"""A damaged or hostile ext volume is refused, or gives only ranges that keep the rules; the reader always ends."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.unit.volumes.ext.images import FileImage, MemoryImage, debugfs, make_image, make_tree
from understudy.model.exclusion import Kind
from understudy.model.extent import intersect
from understudy.units import KIB, MIB
from understudy.volumes import Unfit, Wishes
from understudy.volumes.ext import open_ext
from understudy.volumes.ext.groups import Groups
from understudy.volumes.ext.superblock import read_superblock
from understudy.volumes.masks import Masks

WISHES = Wishes(masks=Masks(["/skip/**"]), free=True, quiesced=True)


@pytest.mark.parametrize("options", [
    ("-t", "ext4"), ("-t", "ext4", "-O", "^metadata_csum"), ("-t", "ext3"), ("-t", "ext2"),
], ids=["ext4", "no-sums", "ext3", "ext2"])  # fmt: skip
def test_damage_ends_in_a_refusal_or_in_ranges_that_keep_the_rules(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = make_image(tmp_path, make_tree(tmp_path), *options, size=24 * MIB)
    pristine = image.read_bytes()
    metadata = Groups(FileImage(image), read_superblock(FileImage(image))).metadata()
    used = [block for block in range(0, len(pristine), KIB) if any(pristine[block : block + KIB])]
    aims = [at for item in metadata for at in range(item.start, item.end, KIB) if at in set(used)]
    chance = random.Random(5)
    refused = 0
    for number in range(60):
        data = bytearray(pristine)
        for _ in range(60):
            at = chance.choice(aims if number % 2 else used) + chance.randrange(KIB)
            data[at] = chance.randrange(256)
        try:
            found = open_ext(MemoryImage(data)).find(WISHES)
        except Unfit:
            refused += 1
            continue
        kinds = list(found.ranges.values())
        for position, ranges in enumerate(kinds):
            assert all(item.length > 0 and item.start % KIB == 0 and item.end <= len(data) for item in ranges)
            assert not intersect(ranges, metadata)
            assert not any(intersect(ranges, other) for other in kinds[position + 1 :])
    assert refused


def changed(tmp_path: Path, *requests: str, options: tuple[str, ...] = ("-t", "ext4")) -> FileImage:
    """An image with what debugfs did to it, its checksums made right."""
    image = make_image(tmp_path, make_tree(tmp_path, files=5), *options)
    debugfs(image, *requests, write=True)
    return FileImage(image)


def blocks_of(image: Path, path: str) -> list[int]:
    """The blocks of a file: those of its map first, if that is not in its inode."""
    return [int(number) for number in re.findall(r"\d+", debugfs(image, f'blocks "{path}"').split("\n", 1)[1])]


FILE = "a file with quite a long name, number 3"


@pytest.mark.parametrize("options", [("-t", "ext4"), ("-t", "ext2", "-b", "1024")], ids=["extents", "block-map"])
@pytest.mark.parametrize(("requests", "reason"), [
    ([f'sif "/skip/{FILE}" block[0] 3'], "damaged|metadata"),
    ([f'sif "/skip/{FILE}" blocks 0'], "more blocks than"),
    ([f'sif "/skip/{FILE}" links_count 0'], "do not agree"),
    ([f'sif "/skip/{FILE}" mode 040755'], "do not agree"),
    (["ln <7> /skip/resize"], "own"),
    (["ln <8> /skip/journal"], "own"),
    (["link /skip /skip/deep/up"], "two places"),
], ids=range(7))  # fmt: skip
def test_a_contradiction_condemns_the_volume(
    tmp_path: Path, options: tuple[str, ...], requests: list[str], reason: str
) -> None:
    with pytest.raises(Unfit, match=reason):
        open_ext(changed(tmp_path, *requests, options=options)).find(WISHES)


def test_a_block_that_is_marked_free_condemns_the_volume(tmp_path: Path) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=5), "-t", "ext4")
    debugfs(image, f"freeb {blocks_of(image, f'/skip/{FILE}')[-1]}", write=True)
    with pytest.raises(Unfit, match="marked as free"):
        open_ext(FileImage(image)).find(Wishes(masks=Masks(["/skip/**"])))


def test_a_bitmap_that_does_not_agree_with_its_descriptor_condemns_the_volume(tmp_path: Path) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=5), "-t", "ext4")
    debugfs(image, "set_bg 0 free_blocks_count 77", "set_bg 0 checksum calc", write=True)
    with pytest.raises(Unfit, match="do not agree"):
        open_ext(FileImage(image)).find(Wishes(free=True))


@pytest.mark.parametrize("options", [("-t", "ext4"), ("-t", "ext4", "-b", "4096")])
def test_every_kind_of_checksum_is_verified(tmp_path: Path, options: tuple[str, ...]) -> None:
    """One bit of the superblock, descriptors, a bitmap, an inode, a directory and a block of extents."""
    image = make_image(tmp_path, make_tree(tmp_path), *options)
    layout = read_superblock(FileImage(image))
    group = Groups(FileImage(image), layout).group(0)
    size = layout.block_size
    data = bytearray(image.read_bytes())
    inode = int(re.findall(r"Inode: (\d+)", debugfs(image, "stat /skip/holes"))[0]) - 1
    places = {
        "superblock": 1024 + 0x48,
        "descriptor": (layout.first_block + 1) * size + 0x10,
        "block bitmap": group.block_bitmap * size + 5,
        "the inode": group.inode_table * size + inode * layout.inode_size + 0x10,
        "a block of the directory": blocks_of(image, "/skip")[-1] * size + 40,
    }
    if size == KIB:
        places["an extent block"] = blocks_of(image, "/skip")[0] * size + 13
    for name, at in places.items():
        data[at] ^= 1
        with pytest.raises(Unfit, match=f"checksum of .*{name}"):
            open_ext(MemoryImage(data)).find(WISHES)
        data[at] ^= 1
    assert Kind.MASK in open_ext(MemoryImage(data)).find(WISHES).ranges
