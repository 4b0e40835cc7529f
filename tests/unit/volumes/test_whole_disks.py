"""Whole disks, made by the tools of the guests: of each volume goes what the guest's own paths and names say."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import served
from tests.unit.volumes.disks import (
    HIDDEN,
    KEPT,
    MASKED,
    SWAPPED,
    Part,
    ext4,
    gpt,
    looked,
    pages,
    swap,
    without,
)
from tests.unit.volumes.ext.images import run
from tests.unit.volumes.test_lvm import EXTENT, written
from tests.unit.volumes.whole_images import empty, patched
from tests.unit.volumes.whole_images import run as run_with
from understudy.context import Context
from understudy.model.exclusion import DiskSurvey
from understudy.model.extent import PART
from understudy.mover.api import SurveyDisks, SurveyedDisk
from understudy.mover.survey_process import survey_disks
from understudy.units import MIB
from understudy.volumes.survey import Wanted

ROOT_ID, HOME_ID = "aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"
PART_ID = "bbbbbbbb-0000-4000-8000-000000000003"
ROOT = {"/var/cache/a": MASKED, "/var/lib/b": KEPT, "/home/joe/.cache/hidden": HIDDEN, "/swapfile": KEPT}
HOME = {"/joe/.cache/a": MASKED, "/joe/mail": KEPT, "/var/cache/none": KEPT}
MASKS = ("/var/cache/**", "/home/*/.cache/**")
WANTED = Wanted(masks=MASKS)
#: Of what is left out, borders of 64 KiB parts stay.
MOST = 3 * (300_000 - 2 * PART) // (4 * 4096)


def root(place: Path, fstab: str, **more: bytes) -> bytes:
    return ext4(place, {**ROOT, "/etc/fstab": fstab.encode(), **more}, "-U", ROOT_ID)


def home(place: Path) -> bytes:
    return ext4(place, HOME, "-U", HOME_ID, "-L", "my home")


def check(data: bytes, found: DiskSurvey, *, kept_swap: int = 1) -> bytes:
    """All that masks name goes, and nothing else but swap; the disk as it is then."""
    left = without(data, found)
    assert [pages(left, letter) for letter in (KEPT, HIDDEN)] == [pages(data, letter) for letter in (KEPT, HIDDEN)]
    assert pages(data, MASKED) - pages(left, MASKED) >= 2 * MOST
    assert pages(left, SWAPPED) <= kept_swap * PART // 4096
    assert sum(found.exclusion.by_kind.values()) == sum(item.length for item in found.exclusion.ranges)
    assert sorted(found.exclusion.by_kind) == ["mask", "swap"]
    return left


@pytest.mark.parametrize("name", [
    f"UUID={HOME_ID}", f"/dev/disk/by-uuid/{HOME_ID}", "LABEL=my\\040home", 'LABEL="my\\040home"',
    "/dev/disk/by-label/my\\x20home", f"PARTUUID={PART_ID.upper()}", f"/dev/disk/by-partuuid/{PART_ID}",
    "PARTLABEL=homes", "/dev/disk/by-partlabel/homes",
])  # fmt: skip
def test_a_gpt_with_a_root_a_home_and_swap(tmp_path: Path, name: str) -> None:
    fstab = f"UUID={ROOT_ID} / ext4 defaults 0 1\n{name} /home ext4 defaults 0 2\n/dev/sda3 none swap sw\n"
    data = gpt(tmp_path, [Part(root(tmp_path, fstab)), Part(home(tmp_path), PART_ID, "homes"), Part(swap(tmp_path))])
    (found,) = looked({"vda": data}, WANTED)
    assert found.notes == ()
    left = check(data, found)
    for number, at in ((0, MIB), (1, 9 * MIB)):
        part = tmp_path / f"part{number}"
        part.write_bytes(left[at : at + 8 * MIB])
        run("e2fsck", "-f", "-n", part)


def test_an_mbr_with_logical_partitions(tmp_path: Path) -> None:
    path = empty(tmp_path / "disk", 40 * MIB)
    script = "label: dos\nlabel-id: 0xa1b2c3d4\nstart=2048,size=16384,type=83\nstart=20480,size=49152,type=5\n"
    run_with("sfdisk", "--quiet", "--no-tell-kernel", path,
             stdin=f"{script}start=22528,size=16384,type=83\nstart=40960,size=8192,type=82\n")  # fmt: skip
    fstab = "PARTUUID=a1b2c3d4-01 / ext4\nPARTUUID=A1B2C3D4-05 /home ext4\nPARTUUID=a1b2c3d4-06 none swap\n"
    data = patched(path.read_bytes(), (MIB, root(tmp_path, fstab)), (11 * MIB, home(tmp_path)),
                   (20 * MIB, swap(tmp_path)))  # fmt: skip
    (found,) = looked({"vda": data}, WANTED)
    assert found.notes == ()
    check(data, found)


def lvm(place: Path, fstab: str) -> bytes:
    """A GPT with one physical volume: a root, a home in two pieces that are the wrong way round, and swap."""
    plain = 'id = "{0}" status = ["READ", "WRITE", "VISIBLE"] segment_count = {1}'
    piece = 'segment{0} {{ start_extent = {1} extent_count = {2} type = "striped" stripe_count = 1 ' \
            'stripes = ["pv0", {3}] }}\n'  # fmt: skip
    text = f"root {{ {plain.format('l1', 1)} {piece.format(1, 0, 2, 0)} }}\n"
    text += f"ho-me {{ {plain.format('l2', 2)} {piece.format(1, 0, 1, 5)} {piece.format(2, 1, 1, 2)} }}\n"
    text += f"swap {{ {plain.format('l3', 1)} {piece.format(1, 0, 1, 3)} }}\n"
    inside = home(place)
    at = [MIB + EXTENT * number for number in range(7)]
    data = patched(written(text).data, (at[0], root(place, fstab)), (at[5], inside[:EXTENT]), (at[2], inside[EXTENT:]),
                   (at[3], swap(place)))  # fmt: skip
    return gpt(place, [Part(data)])


@pytest.mark.parametrize("name", [
    "/dev/mapper/vg-ho--me", "/dev/vg/ho-me", "/dev/disk/by-id/dm-name-vg-ho--me", f"UUID={HOME_ID}",
])  # fmt: skip
def test_logical_volumes(tmp_path: Path, name: str) -> None:
    data = lvm(tmp_path, f"/dev/mapper/vg-root / ext4\n{name} /home ext4\n/dev/vg/swap none swap\n")
    (found,) = looked({"vda": data}, WANTED)
    assert found.notes == ()
    check(data, found)


def test_a_root_and_its_home_on_different_disks(tmp_path: Path) -> None:
    disks = {"vda": gpt(tmp_path, [Part(root(tmp_path, f"UUID={HOME_ID} /home ext4"))]), "vdb": home(tmp_path),
             "vdc": swap(tmp_path)}  # fmt: skip
    found = looked(disks, WANTED)
    assert [sorted(item.exclusion.by_kind) for item in found] == [["mask"], ["mask"], ["swap"]]
    for name, item in zip(disks, found, strict=True):
        left = without(disks[name], item)
        assert item.notes == ()
        assert pages(left, KEPT) + pages(left, HIDDEN) == pages(disks[name], KEPT) + pages(disks[name], HIDDEN)


@pytest.mark.parametrize("leave_out_swap", [True, False])
@pytest.mark.parametrize("where", ["partition", "file"])
def test_of_a_hibernated_guest_nothing_goes(tmp_path: Path, where: str, leave_out_swap: bool) -> None:
    """Its other swap areas hold what it had swapped out, and its memory what it knows of its file systems."""
    asleep, awake = patched(swap(tmp_path, MIB), (4096 - 10, b"S1SUSPEND\0")), swap(tmp_path)
    files = {"swapfile": asleep} if where == "file" else {}
    disks = {"vda": gpt(tmp_path, [Part(root(tmp_path, "", **files)), Part(awake)]),
             "vdb": awake if where == "file" else asleep}  # fmt: skip
    for found in looked(disks, Wanted(swap=leave_out_swap, masks=MASKS, free=True, quiesced=True)):
        assert found.exclusion.ranges == ()
        assert found.exclusion.by_kind == {}
        assert found.notes[-1] == "nothing is left out: the guest is hibernated"


def test_what_is_encrypted_damaged_or_unknown_is_kept_and_named(tmp_path: Path) -> None:
    fstab = f"UUID={HOME_ID} /home ext4\n/dev/mapper/secret /secret ext4\n"
    spoilt = patched(home(tmp_path), (1024 + 0x48, b"\xff"))
    luks = b"LUKS\xba\xbe\0\2" + bytes(MIB - 8)
    data = gpt(tmp_path, [Part(root(tmp_path, fstab)), Part(spoilt), Part(luks), Part(b"?" * MIB), Part(bytes(MIB))])
    (found,) = looked({"vda": data}, Wanted(masks=(*MASKS, "/secret/**")))
    assert pages(without(data, found), KEPT) == pages(data, KEPT)
    assert sorted(found.exclusion.by_kind) == ["mask"]
    assert found.notes == (
        "disk vda, partition 4: the checksum of the superblock is wrong",
        "disk vda, partition 3: LUKS is not read, nothing of it is left out",
        "disk vda, partition 2: nothing known is on it, nothing of it is left out",
        *(f"disk vda, partition 5 (ext4): the mask {mask} is not applied to what is mounted at {place}: "
          "it is not read, or not known"
          for mask, place in (("/home/*/.cache/**", "/home"), ("/secret/**", "/secret"))),
    )  # fmt: skip


def test_damage_anywhere_ends_in_notes_and_in_ranges_that_keep_the_rules(tmp_path: Path) -> None:
    """Each seed damages the places where tables and file systems are; no reader breaks."""
    data = lvm(tmp_path, "/dev/vg/root / ext4\n/dev/vg/ho-me /home ext4\n")
    spots = [at for at in range(0, len(data), 512) if any(data[at : at + 512])
             and data[at : at + 512].strip(data[at : at + 1])]  # fmt: skip
    chance = random.Random(11)
    refused = 0
    for number in range(60):
        near = chance.choice(spots)
        changes = [(min(near + chance.randrange(4096), len(data) - 1) if number % 2 else
                    chance.choice(spots) + chance.randrange(512), chance.randbytes(1)) for _ in range(30)]  # fmt: skip
        bad = patched(data, *changes)
        (found,) = looked({"vda": bad}, Wanted(masks=MASKS, free=True, quiesced=True))
        assert not [note for note in found.notes if "reader failed" in note or "cannot be read: " in note]
        assert all(item.start % PART == 0 and item.end <= len(data) for item in found.exclusion.ranges)
        assert sum(found.exclusion.by_kind.values()) == sum(item.length for item in found.exclusion.ranges)
        refused += bool(found.notes)
    assert 10 < refused < 60


def test_the_process_without_rights_finds_the_same_on_all_disks(tmp_path: Path) -> None:
    """Every reader works there: none wants a file, a module or a thread that it cannot have."""
    xfs = empty(tmp_path / "xfs", 300 * MIB)
    run_with("mkfs.xfs", "-q", "-L", "data", xfs)
    fstab = "/dev/vg/root / ext4\n/dev/vg/ho-me /home ext4\nLABEL=data /data xfs\n"
    paths = {"vda": tmp_path / "vda", "vdb": xfs, "vdc": tmp_path / "vdc"}
    paths["vda"].write_bytes(lvm(tmp_path, fstab))
    paths["vdc"].write_bytes(gpt(tmp_path, [Part(swap(tmp_path), name="Übrig"), Part(swap(tmp_path))]))
    assert kinds_in_the_process(tmp_path, paths) == [["free", "mask", "swap"], ["free"], ["swap"]]


def kinds_in_the_process(place: Path, paths: dict[str, Path]) -> list[list[str]]:
    """What is left out of disks, which must be the same as is found without the process."""
    wanted = Wanted(masks=(*MASKS, "/data/**", "C:\\Temp\\**", "\\Temp\\**"), free=True, quiesced=True)
    here = looked({name: path.read_bytes() for name, path in paths.items()}, wanted)
    with ExitStack() as exports:
        disks = tuple(SurveyedDisk(name, exports.enter_context(served(place, path, "raw")), path.stat().st_size)
                      for name, path in paths.items())
        request = SurveyDisks(disks, wanted.swap, wanted.masks, wanted.free, wanted.quiesced, wanted.former)
        assert survey_disks(Context(), request, None) == here
    return [sorted(item.exclusion.by_kind) for item in here]
