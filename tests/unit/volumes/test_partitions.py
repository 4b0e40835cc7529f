"""Partitions are where sgdisk and sfdisk say, and a table that is not right condemns the disk."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
import zlib
from pathlib import Path

import pytest

from tests.unit.volumes.whole_images import BytesImage, damaged, empty, patched, refused, run
from understudy.model.extent import Extent
from understudy.units import KIB, MIB
from understudy.volumes import Unfit
from understudy.volumes.partitions import Partition, partitions

SIZE = 8 * MIB
GPT_TABLES = [Extent(0, 512 * 40), Extent(SIZE - 512 * 40, 512 * 40)]
LDM, SPACES = "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3", "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"


@functools.cache
def gpt(*parts: str) -> bytes:
    """Each ``START:END:TYPE`` as sgdisk takes them."""
    words: list[str] = []
    for number, part in enumerate(parts, 1):
        place, kind = part.rsplit(":", 1)
        words += ["-n", f"{number}:{place}", "-t", f"{number}:{kind}"]
    with tempfile.TemporaryDirectory() as place:
        path = empty(Path(place, "disk"), SIZE)
        run("sgdisk", *words, path)
        return path.read_bytes()


def mbr(tmp_path: Path, script: str) -> bytes:
    path = empty(tmp_path / "disk", SIZE)
    run("sfdisk", "--quiet", "--no-tell-kernel", path, stdin=f"label: dos\n{script}")
    return path.read_bytes()


def told(tmp_path: Path, data: bytes) -> list[tuple[int, int]]:
    path = tmp_path / "told"
    path.write_bytes(data)
    table = json.loads(run("sfdisk", "-J", path))["partitiontable"]
    found = [item for item in table["partitions"] if item["type"] not in ("5", "f", "85")]
    return sorted((item["start"] * 512, item["size"] * 512) for item in found)


def places(data: bytes) -> list[tuple[int, int]]:
    return [(item.start, item.length) for item in partitions(BytesImage(data))]


def test_a_gpt_is_read_as_sfdisk_reads_it(tmp_path: Path) -> None:
    data = gpt("2048:4095:EF00", "9000:12000:8300", "4096:8191:8200", "0:0:0700")
    assert places(data) == told(tmp_path, data)
    assert partitions(BytesImage(data))[0].type == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


def test_an_mbr_with_logical_partitions_is_read_as_sfdisk_reads_it(tmp_path: Path) -> None:
    primary = "start=2048,size=1024,type=83\nstart=4096,size=10600,type=5\nstart=15000,size=1024,type=7\n"
    logical = "start=6144,size=512,type=82\nstart=10240,size=1024,type=8e\nstart=14336,size=200,type=83\n"
    data = mbr(tmp_path, primary + logical)
    assert places(data) == told(tmp_path, data)
    assert [item.type for item in partitions(BytesImage(data))] == ["0x83", "0x82", "0x8e", "0x83", "0x07"]


@pytest.mark.parametrize("table", ["gpt", "dos"])
def test_partitions_have_the_identities_that_blkid_sees(tmp_path: Path, table: str) -> None:
    path = empty(tmp_path / "disk", SIZE)
    if table == "gpt":
        run("sgdisk", "-n", "3:2048:4095", "-c", "3:a name", "-n", "1:4096:8191", "-c", "1:\u00dcber", path)
    else:
        script = "label: dos\nlabel-id: 0xa1b2c3d4\nstart=2048,size=1024\nstart=4096,size=10600,type=5\n"
        run("sfdisk", "--quiet", "--no-tell-kernel", path,
            stdin=f"{script}start=15000,size=1024\nstart=6144,size=512\nstart=10240,size=1024\n")  # fmt: skip
    found = {item.number: item for item in partitions(BytesImage(path.read_bytes()))}
    assert sorted(found) == ([1, 3] if table == "gpt" else [1, 3, 5, 6])
    told = {item["node"].removeprefix(str(path)): item
            for item in json.loads(run("sfdisk", "-J", path))["partitiontable"]["partitions"]}
    for number, item in found.items():
        assert item.start == told[str(number)]["start"] * 512
        if table == "gpt":
            assert (item.uuid, item.label) == (told[str(number)]["uuid"].lower(), told[str(number)].get("name", ""))
        else:
            assert (item.uuid, item.label) == (f"a1b2c3d4-{number:02x}", "")


def test_sectors_of_4096_bytes_are_understood() -> None:
    data = large_sectors()
    assert places(data) == [(2048 * KIB, 4 * MIB)]


def test_a_disk_without_a_table_is_one_volume(tmp_path: Path) -> None:
    assert partitions(BytesImage(bytes(MIB))) == (Partition(0, MIB, ""),)
    path = empty(tmp_path / "ext4", SIZE)
    run("mkfs.ext4", "-q", path)
    assert partitions(BytesImage(path.read_bytes())) == (Partition(0, SIZE, ""),)
    ntfs = empty(tmp_path / "ntfs", SIZE)
    run("mkntfs", "-F", "-q", "-f", ntfs)
    assert partitions(BytesImage(ntfs.read_bytes())) == (Partition(0, SIZE, ""),)
    assert partitions(BytesImage(mbr(tmp_path, ""))) == (Partition(0, SIZE, ""),)


@pytest.mark.parametrize("kind", [LDM, SPACES])
def test_a_disk_that_is_part_of_something_larger_is_refused(kind: str) -> None:
    with pytest.raises(Unfit, match="Windows"):
        partitions(BytesImage(gpt("2048:4095:8300", f"4096:8191:{kind}")))


def test_a_dynamic_disk_is_refused(tmp_path: Path) -> None:
    for script in ("start=2048,size=4096,type=42\n", "start=2048,size=8192,type=5\nstart=4096,size=1024,type=42\n"):
        with pytest.raises(Unfit, match="dynamic"):
            partitions(BytesImage(mbr(tmp_path, script)))


@pytest.mark.parametrize("place", [0, 4 * KIB, SIZE - 8 * KIB, SIZE - 64 * KIB])
@pytest.mark.parametrize("magic", [b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc"])
def test_a_member_of_a_software_raid_is_refused(place: int, magic: bytes) -> None:
    with pytest.raises(Unfit, match="RAID"):
        partitions(BytesImage(patched(bytes(SIZE), (place, magic))))


@pytest.mark.parametrize("change", [
    (512 + 56, b"x"),             # identity of the disk in the first header
    (1024, b"x"),                 # first entry of the first table
    (SIZE - 512 + 56, b"x"),      # the second header
    (SIZE - 33 * 512, b"x"),      # the second table
    (512, b"EFI TRAP"),
    (SIZE - 512, bytes(8)),
    (450, b"\x83"),               # no protective MBR
    (510, bytes(2)),
    (466, b"\x83"),               # a hybrid one
])  # fmt: skip
def test_a_damaged_gpt_is_refused(change: tuple[int, bytes]) -> None:
    data = gpt("2048:4095:8300")
    with pytest.raises(Unfit):
        partitions(BytesImage(patched(data, change)))


def test_copies_of_a_gpt_that_differ_are_refused() -> None:
    """Each copy is right by itself."""
    data = gpt("2048:4095:8300")
    other = gpt("2048:4096:8300")
    with pytest.raises(Unfit):
        partitions(BytesImage(data[: SIZE - 33 * 512] + other[SIZE - 33 * 512 :]))


def test_partitions_of_a_gpt_that_overlap_or_lie_outside_are_refused() -> None:
    for first, last in ((3000, 5000), (0, 100), (16000, 17000), (5000, 4000)):
        with pytest.raises(Unfit):
            partitions(BytesImage(second_entry(gpt("2048:4095:8300", "4096:8191:8300"), first, last)))
    data = gpt("2048:4095:8300", "4096:8191:8300")
    assert places(second_entry(data, 4096, 8191)) == places(data)


def test_an_mbr_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    data = mbr(tmp_path, "start=2048,size=4096,type=83\nstart=8192,size=4096,type=83\n")
    for change in ((446, b"\x12"), (446 + 8, bytes(4)), (446 + 12, b"\xff\xff\xff\x7f"), (462 + 8, b"\0\x09\0\0")):
        with pytest.raises(Unfit):
            partitions(BytesImage(patched(data, change)))


def test_logical_partitions_in_a_circle_end(tmp_path: Path) -> None:
    data = mbr(tmp_path, "start=2048,size=12000,type=5\nstart=4096,size=1024,type=83\nstart=8192,size=1024,type=83\n")
    second = struct.unpack_from("<I", data, 2048 * 512 + 462 + 8)[0]
    table = (2048 + second) * 512
    back = bytes.fromhex("0000000005000000") + struct.pack("<II", second, 100)
    with pytest.raises(Unfit):
        partitions(BytesImage(patched(data, (table + 462, back))))


def test_damage_never_moves_a_partition() -> None:
    data = gpt("2048:4095:8300", "4096:8191:8200")
    there = places(data)
    for seed in range(100):
        image = BytesImage(damaged(data, seed, GPT_TABLES))
        assert refused(lambda image=image: partitions(image)) or places(image.data) == there  # type: ignore[misc]


def test_damage_of_an_mbr_does_nothing_but_refuse_it_or_move_its_partitions_on_the_disk(tmp_path: Path) -> None:
    data = mbr(tmp_path, "start=2048,size=4096,type=83\nstart=8192,size=8000,type=5\nstart=10240,size=4096,type=82\n")
    for seed in range(100):
        image = BytesImage(damaged(data, seed, [Extent(446, 66), Extent(8192 * 512 + 446, 66)]))
        if not refused(lambda image=image: partitions(image)):  # type: ignore[misc]
            end = 0
            for start, length in places(image.data):
                assert end <= start < start + length <= SIZE
                end = start + length


def second_entry(data: bytes, first: int, last: int) -> bytes:
    """With other places in the second entry of both tables, and right checksums."""
    size, table = len(data), 128 * 128
    for header, place in ((512, 1024), (size - 512, size - 512 - table)):
        data = patched(data, (place + 128 + 32, struct.pack("<QQ", first, last)))
        checksum = struct.pack("<I", zlib.crc32(data[place : place + table]))
        data = patched(data, (header + 88, checksum), (header + 16, bytes(4)))
        data = patched(data, (header + 16, struct.pack("<I", zlib.crc32(data[header : header + 92]))))
    return data


def large_sectors() -> bytes:
    """No tool makes a GPT of 4096 byte sectors in a file."""
    sector, size = 4 * KIB, 16 * MIB
    sectors = size // sector
    entry = bytes.fromhex("af3dc60f838472478e793d69d8477de4") + bytes(16) + struct.pack("<QQ", 512, 1535) + bytes(80)
    table = entry + bytes(128 * 127)

    def header(own: int, other: int, place: int) -> bytes:
        def raw(crc: int) -> bytes:
            return struct.pack("<8s4sIIIQQQQ16sQIII", b"EFI PART", b"\0\0\1\0", 92, crc, 0, own, other, 6, sectors - 6,
                               b"d" * 16, place, 128, 128, zlib.crc32(table))  # fmt: skip

        return raw(zlib.crc32(raw(0)))

    protective = bytes.fromhex("00000200eeffffff01000000") + struct.pack("<I", sectors - 1)
    data = patched(bytes(size), (446, protective), (510, b"\x55\xaa"))
    data = patched(data, (sector, header(1, sectors - 1, 2)), (2 * sector, table))
    return patched(data, (size - sector, header(sectors - 1, 1, sectors - 5)), (size - 5 * sector, table))
