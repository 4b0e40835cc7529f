"""What may be left out of an XFS file system is what ``xfs_db`` says of it, whatever its features are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.volumes.xfs.images import MIB, blocks_of, free_blocks, image_of, make, superblock, swap_bytes
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, clip, intersect, merge, subtract, total, unite
from understudy.volumes import Finding, Unfit, Wishes
from understudy.volumes.masks import Masks
from understudy.volumes.xfs import open_xfs

MANY = {f"/cache/many/{number:04d}-a-name-of-some-length": b"m" * (number % 9000) for number in range(1200)}
TREE = {
    "/swap/swapfile": swap_bytes(2 * MIB),
    "/etc/fstab": b"/dev/sda1 / xfs defaults 0 0\n",
    "/cache/short/a": b"a" * 10_000,
    "/cache/short/b": b"b" * 70_000,
    "/cache/empty": b"",
    **{f"/cache/block/{number}": b"c" * 5000 for number in range(30)},
    **MANY,
    **{f"/kept/{number}": b"k" * 5000 for number in range(40)},
}
VARIANTS = {
    "default": (),
    "no reflink": ("-m", "reflink=0"),
    "reverse map": ("-m", "rmapbt=1"),
    "no free inode tree": ("-m", "finobt=0,inobtcount=0"),
    "old times": ("-m", "bigtime=0"),
    "big counts": ("-i", "nrext64=1"),
    "dense inodes": ("-i", "size=2048"),
    "five odd groups": ("--unsupported", "-d", "agcount=5", "-l", "size=16m"),
    "directories of 8 KiB": ("-n", "size=8192"),
    "blocks of 1 KiB": ("-b", "size=1024"),
    "sectors of 4 KiB": ("-s", "size=4096"),
    "log of stripes": ("-l", "su=65536"),
}


def find(image: Path, wishes: Wishes) -> Finding:
    return open_xfs(image_of(image)).find(wishes)


@pytest.fixture(scope="module", params=list(VARIANTS.values()), ids=list(VARIANTS))
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("xfs"), TREE, *request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {"/swapfile": swap_bytes(MIB), "/a/b/swap": swap_bytes(MIB), "/kept": b"k" * 9000}
    return make(tmp_path_factory.mktemp("plain"), tree)


def test_all_kinds_are_what_xfs_db_says(image: Path) -> None:
    found = find(image, Wishes(masks=Masks(["/cache/"]), free=True))
    swap = blocks_of(image, "/swap/swapfile")
    assert list(found.ranges[Kind.SWAP]) == clip(swap, swap[0].start + 4096, 1 << 62)
    names = [name for name in TREE if name.startswith("/cache/") and TREE[name] and name not in MANY]
    names += list(MANY)[1:1200:97]
    named = merge(sorted((item for name in names for item in blocks_of(image, name)), key=lambda item: item.start))
    assert subtract(named, found.ranges[Kind.MASK]) == []
    block = superblock(image)["blocksize"]
    sizes = [-(-len(data) // block) * block for name, data in TREE.items() if name.startswith("/cache/")]
    assert total(found.ranges[Kind.MASK]) == sum(sizes)
    with_reserve = free_blocks(image)
    assert subtract(found.ranges[Kind.FREE], with_reserve) == []
    counts = superblock(image)
    # xfs_db counts the reserve of each group, which stays in use.
    reserve = subtract(with_reserve, found.ranges[Kind.FREE])
    assert 0 < total(reserve) <= counts["agcount"] * 16 * block
    assert found.used == counts["dblocks"] * block - total(found.ranges[Kind.FREE])
    assert found.notes == ()


def test_no_kept_file_is_in_any_kind(image: Path) -> None:
    found = find(image, Wishes(masks=Masks(["/cache/"]), free=True))
    out: list[Extent] = []
    for ranges in found.ranges.values():
        assert intersect(out, ranges) == []
        out = unite(out, ranges)
    for name in list(TREE):
        if not name.startswith(("/cache/", "/swap/")):
            assert intersect(out, blocks_of(image, name)) == []


def test_names_and_small_files_are_read(image: Path) -> None:
    volume = open_xfs(image_of(image))
    assert (volume.kind, volume.label, len(volume.uuid)) == ("xfs", "lab", 36)
    assert volume.read_file("/etc/fstab", 1000) == TREE["/etc/fstab"]
    assert volume.read_file("/cache/short/b", 100_000) == TREE["/cache/short/b"]
    assert volume.read_file("/etc/fstab", 5) is None
    assert volume.read_file("/etc/none", 1000) is None
    assert volume.read_file("/etc", 1000) is None
    assert volume.read_file("/etc/fstab/x", 1000) is None


def test_only_what_is_wished_for_is_found(plain: Path) -> None:
    assert set(find(plain, Wishes()).ranges) == {Kind.SWAP}
    assert find(plain, Wishes(swap=False)).ranges == {}
    assert set(find(plain, Wishes(swap=False, free=True)).ranges) == {Kind.FREE}
    assert set(find(plain, Wishes(swap=False, masks=Masks(["/kept"]))).ranges) == {Kind.MASK}


def test_a_swap_file_of_another_name_is_found_if_it_is_named(plain: Path) -> None:
    both = find(plain, Wishes(swap_files=("/a/b/swap", "/a/none", "/a/b/swap/x", "relative")))
    assert total(both.ranges[Kind.SWAP]) == 2 * (MIB - 4096)


def test_a_swap_file_that_a_mask_names_too_keeps_its_first_page(plain: Path) -> None:
    found = find(plain, Wishes(masks=Masks(["/swapfile", "/kept"])))
    assert total(found.ranges[Kind.SWAP]) == MIB - 4096
    assert list(found.ranges[Kind.MASK]) == blocks_of(plain, "/kept")


@pytest.mark.parametrize("data", [
    swap_bytes(MIB, signature=b"S1SUSPEND\0"),
    swap_bytes(MIB, signature=b"ULSUSPEND\0"),
    swap_bytes(MIB, signature=b"LINHIB0001"),
    swap_bytes(MIB, version=2),
    swap_bytes(MIB, pages=257),
    b"x" * MIB,
    b"SWAPSPACE2",
], ids=["hibernated", "user space", "newer", "version", "too long", "no header", "short"])  # fmt: skip
def test_a_file_that_is_not_surely_swap_stays(tmp_path: Path, data: bytes) -> None:
    found = find(make(tmp_path, {"/swapfile": data}), Wishes())
    assert found.ranges == {}
    assert found.asleep == (b"SUSPEND" in data[:4096] or b"LINHIB" in data[:4096])


def test_what_lies_behind_the_last_page_of_a_swap_file_stays(tmp_path: Path) -> None:
    image = make(tmp_path, {"/swapfile": swap_bytes(MIB, pages=9)})
    (found,) = find(image, Wishes()).ranges[Kind.SWAP]
    assert found == Extent(blocks_of(image, "/swapfile")[0].start + 4096, 9 * 4096)


def test_what_is_no_xfs_is_not_taken_for_it(tmp_path: Path) -> None:
    other = tmp_path / "zeros"
    for size in (0, 511, 4096):
        other.write_bytes(bytes(size))
        with pytest.raises(Unfit):
            open_xfs(image_of(other))
