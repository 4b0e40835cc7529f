"""The ranges of an ext volume are those that debugfs and dumpe2fs see, whatever its features."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.unit.volumes.ext.images import (
    FileImage,
    block_size,
    debugfs,
    free,
    make_image,
    make_tree,
    places,
    run,
    swap_content,
)
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, subtract, total, unite
from understudy.units import KIB, MIB
from understudy.volumes import Finding, Unfit, Wishes
from understudy.volumes.ext import open_ext
from understudy.volumes.masks import Masks

MASKS = Masks(["/skip/**"])
FEATURES = {
    "ext2": ("-t", "ext2"),
    "ext2-1k": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3"),
    "ext4": ("-t", "ext4"),
    "1k": ("-t", "ext4", "-b", "1024"),
    "narrow": ("-t", "ext4", "-O", "^64bit"),
    "bigalloc": ("-t", "ext4", "-O", "bigalloc"),
    "meta_bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"),
    "inline_data": ("-t", "ext4", "-O", "inline_data", "-I", "256"),
    "uninit_bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg"),
    "no-sums": ("-t", "ext4", "-O", "^metadata_csum"),
    "sparse_super2": ("-t", "ext4", "-b", "1024", "-O", "sparse_super2,^resize_inode"),
    "orphan_file": ("-t", "ext4", "-O", "orphan_file"),
    "csum_seed": ("-t", "ext4", "-O", "metadata_csum_seed"),
    "small-inodes": ("-t", "ext4", "-I", "128"),
    "no-journal": ("-t", "ext4", "-O", "^has_journal"),
    "large_dir": ("-t", "ext4", "-O", "large_dir"),
}


def search(image: Path, swap_files: tuple[str, ...] = ()) -> Finding:
    """What the reader finds in a quiesced image."""
    return open_ext(FileImage(image)).find(Wishes(masks=MASKS, free=True, quiesced=True, swap_files=swap_files))


def masked_paths(tree: Path) -> list[str]:
    """The files that the masks name and that have one name."""
    return [
        f"/{path.relative_to(tree)}" for path in (tree / "skip").rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
    ]  # fmt: skip


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_ranges_are_those_of_debugfs_and_dumpe2fs(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = make_tree(tmp_path)
    size = 600 * MIB if "meta_bg" in options[-1] else 64 * MIB
    image = make_image(tmp_path, tree, *options, size=size)
    found = search(image)
    ranges = found.ranges
    named = masked_paths(tree)
    if "inline_data" in options:
        # A directory this small lies in its inode, where the reader does not look.
        assert any("inline_data" in note for note in found.notes)
        named = [path for path in named if "/deep/" not in path]
    assert list(ranges[Kind.MASK]) == places(image, *named)
    assert total(ranges[Kind.MASK]) > MIB
    whole = places(image, "/swapfile")
    assert total(ranges[Kind.SWAP]) == 4 * MIB - 4 * KIB
    assert subtract(ranges[Kind.SWAP], whole) == []
    if "bigalloc" in options:
        assert Kind.FREE not in ranges
    else:
        assert list(ranges[Kind.FREE]) == free(image)
        numbers = dict(re.findall(r"^(Block count|Free blocks): +(\d+)", run("dumpe2fs", "-h", image), re.MULTILINE))
        assert found.used == (int(numbers["Block count"]) - int(numbers["Free blocks"])) * block_size(image)


def test_a_volume_is_known_by_what_the_guest_calls_it(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, files=1)
    for kind in ("ext2", "ext3", "ext4"):
        identity = "01234567-89ab-cdef-0123-456789abcdef"
        image = FileImage(make_image(tmp_path, tree, "-t", kind, "-L", "data", "-U", identity))
        opened = open_ext(image)
        assert (opened.kind, opened.uuid, opened.label) == (kind, identity, "data")
        assert opened.read_file("/etc/fstab", 4096) == (tree / "etc/fstab").read_bytes()
        assert opened.read_file("/etc/fstab", 4) is None
        assert opened.read_file("/etc/none", 4096) is None
        assert opened.read_file("/etc", 4096) is None


def test_zeros_in_place_of_the_ranges_harm_no_kept_file(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    image = make_image(tmp_path, tree, "-t", "ext4")
    left_out: list[Extent] = []
    for ranges in search(image).ranges.values():
        left_out = unite(left_out, ranges)
    with image.open("r+b") as handle:
        for item in left_out:
            handle.seek(item.start)
            handle.write(bytes(item.length))
    run("e2fsck", "-f", "-n", image)
    out = tmp_path / "out"
    out.mkdir()
    debugfs(image, f"rdump /keep {out}", f"rdump /skip {out}", f"dump /swapfile {out}/swapfile")
    kept = [path for path in (tree / "keep").rglob("*") if path.is_file()]
    assert len(kept) > 100
    for path in kept:
        assert digest(out / path.relative_to(tree)) == digest(path)
    assert digest(out / "skip/twice") == digest(tree / "skip/twice")
    assert not any((out / path[1:]).read_bytes().strip(b"\0") for path in masked_paths(tree))
    assert (out / "swapfile").read_bytes() == (tree / "swapfile").read_bytes()[:4096].ljust(4 * MIB, b"\0")


def digest(path: Path) -> bytes:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize(("content", "left_out"), [
    (swap_content(MIB), MIB - 4 * KIB),
    (swap_content(MIB, mark=b"SWAP-SPACE"), MIB - 4 * KIB),
    (swap_content(MIB, page=64 * KIB), MIB - 64 * KIB),
    (swap_content(MIB) + bytes(MIB), MIB - 4 * KIB),
    (swap_content(MIB, mark=b"S1SUSPEND\0"), 0),
    (swap_content(MIB, mark=b"LINHIB0001"), 0),
    (swap_content(MIB, version=2), 0),
    (swap_content(MIB)[: MIB // 2], 0),
    (b"not a swap file" * 10_000, 0),
], ids=range(9))  # fmt: skip
def test_only_a_swap_file_is_left_out_as_one(tmp_path: Path, content: bytes, left_out: int) -> None:
    tree = make_tree(tmp_path, files=1)
    (tree / "swapfile").write_bytes(content)
    found = search(make_image(tmp_path, tree, "-t", "ext4", "-b", "1024"))
    assert total(found.ranges.get(Kind.SWAP, ())) == left_out
    sleeps = b"S1SUSPEND" in content or b"LINHIB" in content
    assert (found.asleep, any("hibernated" in note for note in found.notes)) == (sleeps, sleeps)


def test_a_swap_file_of_another_name_must_be_wished_for_and_have_one_name(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, files=1)
    (tree / "swapfile").rename(tree / "var/page")
    image = make_image(tmp_path, tree, "-t", "ext4")
    assert Kind.SWAP not in search(image).ranges
    assert total(search(image, swap_files=("/var/page",)).ranges[Kind.SWAP]) == 4 * MIB - 4 * KIB
    (tree / "keep/again").hardlink_to(tree / "var/page")
    found = search(make_image(tmp_path, tree, "-t", "ext4"), swap_files=("/var/page",))
    assert Kind.SWAP not in found.ranges
    assert "/var/page has several names and is replicated" in found.notes


def test_a_swap_file_whose_blocks_were_never_written_is_left_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, files=1)
    (tree / "swapfile").write_bytes(swap_content(4 * MIB)[:4096])
    image = make_image(tmp_path, tree, "-t", "ext4", "-b", "4096")
    debugfs(image, "fallocate /swapfile 0 1023", f"sif /swapfile size {4 * MIB}", write=True)
    run("e2fsck", "-f", "-n", image)
    assert total(search(image).ranges[Kind.SWAP]) == 4 * MIB - 4 * KIB


def test_a_swap_file_that_a_mask_names_too_keeps_its_header(tmp_path: Path) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=1), "-t", "ext4")
    wishes = Wishes(masks=Masks(["/swapfile"]), quiesced=True)
    ranges = open_ext(FileImage(image)).find(wishes).ranges
    assert total(ranges[Kind.SWAP]) == 4 * MIB - 4 * KIB
    assert Kind.MASK not in ranges


def test_without_a_journal_only_a_frozen_volume_is_used(tmp_path: Path) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=1), "-t", "ext2")
    with pytest.raises(Unfit, match="not frozen"):
        open_ext(FileImage(image)).find(Wishes())
    assert open_ext(FileImage(image)).find(Wishes(quiesced=True)).ranges
    debugfs(image, "ssv state 0", write=True)
    with pytest.raises(Unfit, match="cleanly"):
        open_ext(FileImage(image)).find(Wishes(quiesced=True))


@pytest.mark.parametrize("feature", ["encrypt", "casefold", "mmp", "ea_inode"])
def test_a_feature_that_is_not_known_is_named(tmp_path: Path, feature: str) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=1), "-t", "ext4", "-O", feature)
    with pytest.raises(Unfit, match=feature):
        open_ext(FileImage(image))


def test_errors_that_the_guest_recorded_are_a_reason(tmp_path: Path) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=1), "-t", "ext4")
    debugfs(image, "ssv state 3", write=True)
    with pytest.raises(Unfit, match="fsck"):
        open_ext(FileImage(image))


def test_what_is_no_ext_is_not_taken_for_it(tmp_path: Path) -> None:
    image = tmp_path / "zeros"
    for size in (64 * KIB, 100, 0):
        image.write_bytes(bytes(size))
        with pytest.raises(Unfit):
            open_ext(FileImage(image))


def test_directories_that_no_mask_speaks_of_are_not_read(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, files=1)
    image = make_image(tmp_path, tree, "-t", "ext4")
    reader = FileImage(image)
    open_ext(reader).find(Wishes(masks=MASKS))
    unread = places(image, "/keep", "/keep/deep")
    assert unread
    for offset, length in reader.reads:
        assert not intersect([Extent(offset, length)], unread)


@pytest.mark.parametrize("path", ["/keep", "/lost+found", "/keep/deep"])
def test_a_mask_of_everything_leaves_out_no_directory(tmp_path: Path, path: str) -> None:
    image = make_image(tmp_path, make_tree(tmp_path, files=20), "-t", "ext4")
    ranges = open_ext(FileImage(image)).find(Wishes(swap=False, masks=Masks(["/**/*"]))).ranges[Kind.MASK]
    assert places(image, path)
    assert not intersect(ranges, places(image, path))
