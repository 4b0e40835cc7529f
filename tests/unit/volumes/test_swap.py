"""Of a swap area everything goes but the page that names it, and nothing of one that holds a hibernated system."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.volumes.whole_images import BytesImage, damaged, empty, patched, run
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent
from understudy.units import KIB, MIB
from understudy.volumes import Finding, Unfit, Wishes
from understudy.volumes.swap import check_header, is_swap, swap_finding

UUID = "0b1f7a4e-6d1c-4b62-8e7f-0123456789ab"


def made(tmp_path: Path, size: int = MIB, *options: str) -> bytes:
    path = empty(tmp_path / "swap", size)
    run("mkswap", "-L", "spare", "-U", UUID, *options, path)
    return path.read_bytes()


def test_everything_behind_the_first_page_is_left_out(tmp_path: Path) -> None:
    image = BytesImage(made(tmp_path))
    assert is_swap(image)
    assert swap_finding(image, Wishes()) == Finding({Kind.SWAP: (Extent(4 * KIB, MIB - 4 * KIB),)}, used=MIB)
    assert swap_finding(image, Wishes(swap=False)).ranges == {}


def test_a_swap_area_that_is_emptied_so_is_still_the_one_that_fstab_names(tmp_path: Path) -> None:
    data = made(tmp_path)
    left_out = swap_finding(BytesImage(data), Wishes()).ranges[Kind.SWAP]
    path = tmp_path / "emptied"
    path.write_bytes(patched(data, *((item.start, bytes(item.length)) for item in left_out)))
    assert run("blkid", "-p", "-s", "UUID", "-s", "LABEL", "-s", "TYPE", "-o", "value", path).split() == [
        "spare", UUID, "swap"]  # fmt: skip
    header = check_header(path.read_bytes()[: 64 * KIB], MIB)
    assert (header.uuid, header.label, header.keep, header.end) == (UUID, "spare", 4 * KIB, MIB)


def test_what_follows_the_last_page_stays(tmp_path: Path) -> None:
    data = made(tmp_path) + bytes(10_000)
    assert swap_finding(BytesImage(data), Wishes()).ranges[Kind.SWAP] == (Extent(4 * KIB, MIB - 4 * KIB),)


def test_large_pages_stay_whole(tmp_path: Path) -> None:
    data = made(tmp_path, 4 * MIB, "-p", "65536")
    assert swap_finding(BytesImage(data), Wishes()).ranges[Kind.SWAP] == (Extent(64 * KIB, 4 * MIB - 64 * KIB),)


def test_as_much_as_the_largest_page_stays_if_the_page_size_cannot_be_told(tmp_path: Path) -> None:
    data = patched(made(tmp_path), (16 * KIB - 10, b"SWAPSPACE2"))
    assert swap_finding(BytesImage(data), Wishes()).ranges[Kind.SWAP] == (Extent(64 * KIB, MIB - 64 * KIB),)


def test_a_guest_of_the_other_byte_order_is_understood(tmp_path: Path) -> None:
    data = patched(made(tmp_path), (1024, struct.pack(">III", 1, 255, 0)))
    assert check_header(data[: 64 * KIB], MIB).end == MIB


@pytest.mark.parametrize("signature", [b"S1SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001", b"S2SUSPEND\0"])
def test_a_hibernated_system_is_kept(tmp_path: Path, signature: bytes) -> None:
    image = BytesImage(patched(made(tmp_path), (4 * KIB - 10, signature)))
    assert is_swap(image)
    with pytest.raises(Unfit, match="hibernated"):
        swap_finding(image, Wishes())


@pytest.mark.parametrize(("offset", "text"), [
    (4 * KIB - 10, b"SWAPSPACE3"),
    (4 * KIB - 10, b"SWAP-SPACE"),
    (1024, struct.pack("<I", 2)),
    (1028, struct.pack("<I", 0)),
    (1028, struct.pack("<I", 256)),
    (1028, struct.pack("<I", 0xFFFFFFFF)),
    (1032, struct.pack("<I", 1 << 20)),
    (0, b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"),
])  # fmt: skip
def test_a_header_that_is_not_right_condemns_the_area(tmp_path: Path, offset: int, text: bytes) -> None:
    changes = [(offset, text)] + ([(1024, bytes(4))] if text == b"SWAP-SPACE" else [])
    with pytest.raises(Unfit):
        swap_finding(BytesImage(patched(made(tmp_path), *changes)), Wishes())


@pytest.mark.parametrize("size", [0, 100, 4 * KIB - 1, 4 * KIB, 5 * KIB])
def test_a_short_or_empty_image_is_none(size: int) -> None:
    assert not is_swap(BytesImage(bytes(size)))
    with pytest.raises(Unfit):
        swap_finding(BytesImage(bytes(size)), Wishes())


def test_damage_never_lets_out_more(tmp_path: Path) -> None:
    data = made(tmp_path)
    for seed in range(100):
        image = BytesImage(damaged(data, seed, [Extent(1024, 48), Extent(4086, 10), Extent(0, 4 * KIB)]))
        try:
            found = swap_finding(image, Wishes()).ranges.get(Kind.SWAP, ())
        except Unfit:
            continue
        assert all(item.start >= 4 * KIB and item.end <= MIB for item in found)
