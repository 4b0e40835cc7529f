"""A volume is what its signature says, and nothing if it has two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.volumes.whole_images import BytesImage, empty, patched, run
from understudy.units import KIB, MIB
from understudy.volumes import Unfit
from understudy.volumes.signatures import EMPTY, EXT, NTFS, SWAP, UNKNOWN, XFS, recognise

SIZE = 8 * MIB
MAKERS = {
    EXT: ("mkfs.ext4", "-q"),
    NTFS: ("mkntfs", "-F", "-q", "-f"),
    SWAP: ("mkswap",),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_can_be_read_is_recognised(tmp_path: Path, name: str) -> None:
    path = empty(tmp_path / "volume", SIZE)
    run(*MAKERS[name], path)
    assert recognise(BytesImage(path.read_bytes())) == name


def test_xfs_is_recognised(tmp_path: Path) -> None:
    path = empty(tmp_path / "volume", 300 * MIB)
    run("mkfs.xfs", "-q", path)
    with path.open("rb") as handle:
        assert recognise(BytesImage(handle.read(16 * MIB))) == XFS


@pytest.mark.parametrize(("offset", "magic", "name"), [
    (512, b"LABELONE", "lvm"),
    (0, b"LUKS\xba\xbe\0\2", "LUKS"),
    (16 * KIB, b"SKUL\xba\xbe", "LUKS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (64 * KIB + 64, b"_BHRfS_M", "btrfs"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (128 * KIB + 5 * KIB, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS"),
    (32, b"NXSB", "APFS"),
    (82, b"FAT32   ", "vfat"),
    (3, b"EXFAT   ", "exfat"),
    (4 * KIB, b"\xfc\x4e\x2b\xa9", "md member"),
    (SIZE - 8 * KIB, b"\xfc\x4e\x2b\xa9", "md member"),
    (1000, b"something", UNKNOWN),
])  # fmt: skip
def test_what_is_not_read_has_its_name(offset: int, magic: bytes, name: str) -> None:
    assert recognise(BytesImage(patched(bytes(SIZE), (offset, magic)))) == name


def test_a_volume_of_zeros_is_empty() -> None:
    assert recognise(BytesImage(bytes(SIZE))) == EMPTY
    assert recognise(BytesImage(b"")) == EMPTY


@pytest.mark.parametrize("magic", [
    (64 * KIB + 64, b"_BHRfS_M"), (512, b"LABELONE"), (SIZE - 64 * KIB, b"\xfc\x4e\x2b\xa9"),
    (16 * KIB, b"SKUL\xba\xbe"), (4 * KIB - 10, b"SWAPSPACE2"), (3, b"NTFS    "),
    (129 * KIB, b"\0\0\0\0\x00\xba\xb1\x0c"),
])  # fmt: skip
def test_a_remainder_of_something_else_condemns_a_volume(tmp_path: Path, magic: tuple[int, bytes]) -> None:
    path = empty(tmp_path / "volume", SIZE)
    run("mkfs.ext4", "-q", path)
    with pytest.raises(Unfit, match="signatures of"):
        recognise(BytesImage(patched(path.read_bytes(), magic)))
