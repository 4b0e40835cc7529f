"""Masks of Windows go to the volumes that its registry gives their drive letters to."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from tests.unit.volumes.hives import hive, summed
from tests.unit.volumes.test_mounts import System, named
from understudy.volumes import Unfit
from understudy.volumes.device_names import names_of
from understudy.volumes.mounted import Mounted, Told
from understudy.volumes.mounts import layout_of
from understudy.volumes.partitions import Partition
from understudy.volumes.registry import values_of

HOSTS, REGISTRY = "/Windows/System32/drivers/etc/hosts", "/Windows/System32/config/SYSTEM"
GPT = [Partition(at << 20, 1 << 20, "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", number,
                 f"0011223{number}-4455-6677-8899-aabbccddeeff") for number, at in ((1, 1), (2, 2))]  # fmt: skip
MBR = [Partition(at << 20, 1 << 20, "0x07", number, f"0a0b0c0d-0{number}") for number, at in ((1, 1), (2, 2))]
#: What Windows has of these: the disk's signature and an offset, or the partition's identity, in its byte order.
GPT_VALUES = [b"DMIO:ID:" + bytes.fromhex(f"3{number}221100554477668899aabbccddeeff") for number in (1, 2)]
MBR_VALUES = [bytes.fromhex("0d0c0b0a") + struct.pack("<Q", at << 20) for at in (1, 2)]
MASKS = ("C:\\Temp\\**", "d:/data/*", "\\Users\\*\\AppData\\**", "E:\\x\\**")


def system(files: Mapping[str, bytes], part: Partition | None) -> Mounted:
    return Mounted(System("ntfs", files=files), names_of("", "", part))


def told(values: Mapping[str, bytes] | bytes | None, parts: list[Partition], *masks: str) -> tuple[Told, ...]:
    """Of two volumes, the first of which has Windows."""
    raw = values if isinstance(values, bytes | None) else hive({"Select": {}, "MountedDevices": values})
    files = {HOSTS: b"", **({REGISTRY: raw} if raw is not None else {})}
    return layout_of([system(files, parts[0]), system({}, parts[1])], masks or MASKS)


@pytest.mark.parametrize(("parts", "values"), [(GPT, GPT_VALUES), (MBR, MBR_VALUES)], ids=["gpt", "mbr"])
def test_letters_are_those_of_the_registry(parts: list[Partition], values: list[bytes]) -> None:
    letters = {"\\DosDevices\\C:": values[0], "\\DosDevices\\D:": values[1], "\\??\\Volume{1}": values[1]}
    first, second = told(letters, parts)
    assert named(first, "/Temp/a", "/TEMP/A/b", "/data/a", "/Users/joe/AppData/x") == [True, True, False, True]
    assert named(second, "/Temp/a", "/DATA/a", "/data/a/b", "/Users/joe/AppData/x") == [False, True, False, True]
    assert first.notes == ("the mask E:\\x\\** is not applied, for E: is not known: no volume has it",)


def test_windows_that_calls_its_own_volume_otherwise_is_believed() -> None:
    first, second = told({"\\DosDevices\\D:": GPT_VALUES[0], "\\DosDevices\\C:": GPT_VALUES[1]}, GPT)
    assert named(first, "/Temp/a", "/data/a") == [False, True]
    assert named(second, "/Temp/a", "/data/a") == [True, False]


@pytest.mark.parametrize("registry", [
    None, b"", b"regf" * 2000, hive({"Select": {}}), hive({"MountedDevices": {"\\DosDevices\\C:": GPT_VALUES[1]}},
                                                          sequences=(2, 1)),
], ids=["none", "empty", "garbage", "without", "being written"])  # fmt: skip
def test_without_a_registry_windows_own_volume_is_c_and_others_are_not_known(registry: bytes | None) -> None:
    first, second = told(registry, GPT)
    assert named(first, "/Temp/a", "/data/a") == [True, False]
    assert named(second, "/Temp/a", "/data/a") == [False, False]
    assert [note.split()[2] for note in first.notes] == ["d:/data/*", "E:\\x\\**"]


def test_of_several_windows_and_of_none_no_letter_is_known() -> None:
    for files in ({HOSTS: b""}, {}):
        volumes = [system(files, part) for part in GPT]
        for each in layout_of(volumes, MASKS):
            assert named(each, "/Temp/a", "/data/a", "/Users/joe/AppData/x") == [False, False, True]
            assert len(each.notes) == 3
            assert each.notes[0].endswith("there are several Windows" if files else "there is no Windows")


def test_of_two_copies_of_a_volume_none_has_the_letter() -> None:
    files = {HOSTS: b"", REGISTRY: hive({"MountedDevices": {"\\DosDevices\\D:": GPT_VALUES[1]}})}
    volumes = [system(files, GPT[0]), system({}, GPT[1]), system({}, GPT[1])]
    assert [named(each, "/data/a") for each in layout_of(volumes, MASKS)] == [[False]] * 3


def test_masks_of_windows_and_of_linux_do_not_mix() -> None:
    root = Mounted(System(files={"/etc/fstab": b"UUID=ab /mnt/win ntfs"}))
    linux, windows = layout_of([root, Mounted(System("ntfs"), names_of("ab", ""))], ["/mnt/**", "\\Temp\\*"])
    assert named(linux, "/mnt/a", "/mnt/win/Temp/a") == [True, False]
    assert "/mnt/win" in linux.notes[0]
    assert named(windows, "/Temp/a", "/a") == [True, False]


@pytest.mark.parametrize("kind", [b"lf", b"lh", b"li", b"ri"])
def test_a_hive_is_read(kind: bytes) -> None:
    """hivex reads the same of these hives."""
    values = {"\\DosDevices\\C:": bytes(12), "Über": b"x" * 300, "small": b"ab", "none": b""}
    raw = hive({"Ab": {}, "MountedDevices": values, "Select": {"Current": b"\1\0\0\0"}}, list_kind=kind)
    assert values_of(raw, ["mounteddevices"]) == values
    assert values_of(raw, ["Select"]) == {"Current": b"\1\0\0\0"}
    assert values_of(raw, ["Ab"]) == values_of(raw, ["None"]) == values_of(raw, ["Select", "None"]) == {}


def test_what_a_hive_had_when_it_was_last_whole_is_read_on_demand() -> None:
    """That of a Windows that runs is not whole; its checksum may be wrong then, too."""
    raw = hive({"MountedDevices": {"a": b"bc"}}, sequences=(2, 1))
    for written in (raw, raw[:508] + bytes(4) + raw[512:]):
        with pytest.raises(Unfit):
            values_of(written, ["MountedDevices"])
        assert values_of(written, ["MountedDevices"], latest=False) == {"a": b"bc"}


@pytest.mark.parametrize("latest", [True, False])
def test_a_damaged_hive_is_refused_or_read_in_no_time(latest: bool) -> None:
    raw = hive({f"Key{number}": {} for number in range(30)} | {"MountedDevices": {"\\DosDevices\\C:": bytes(12)}})
    used = raw.rindex(b"MountedDevices") + 400
    chance, refused = random.Random(3), 0
    for _ in range(500):
        data = bytearray(raw)
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(4096 if chance.random() < 0.9 else 0, used)] = chance.randrange(256)
        try:
            values_of(summed(bytes(data[:4096])) + bytes(data[4096:]), ["MountedDevices"], latest=latest)
        except Unfit:
            refused += 1
    assert refused > 100
