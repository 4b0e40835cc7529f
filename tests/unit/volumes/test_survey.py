"""How disks, partitions, logical volumes and file systems are put together, with stand-ins for the readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit.volumes.hives import hive
from understudy.model.exclusion import DiskSurvey, Kind
from understudy.model.extent import Extent
from understudy.units import MIB
from understudy.volumes import Finding, Image, Unfit, Wishes
from understudy.volumes.lvm import LogicalVolume
from understudy.volumes.lvm import Piece as LvmPiece
from understudy.volumes.partitions import Partition
from understudy.volumes.survey import Disk, Readers, Wanted, survey

FSTAB = b"UUID=root / ext4 defaults 0 1\nUUID=var /var ext4 defaults 0 2\n/swap.img none swap sw 0 0\n"


class Blank:
    size = 64 * MIB

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


@dataclass
class System:
    uuid: str
    kind: str = "ext4"
    label: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    finding: Finding | Exception = field(default_factory=Finding)
    asked: Wishes | None = None

    def read_file(self, path: str, most: int) -> bytes | None:
        return self.files.get(path)

    def find(self, wishes: Wishes) -> Finding:
        self.asked = wishes
        if isinstance(self.finding, Exception):
            raise self.finding
        return self.finding


def looked(systems: Sequence[System], wanted: Wanted, logical: Sequence[Any] = ()) -> tuple[DiskSurvey, ...]:
    """One disk with a partition of 16 MiB for each system; with ``logical``, the first is a physical volume."""
    waiting, kinds = list(systems), iter(["lvm"] if logical else [])
    readers = Readers(
        partitions=lambda _: [Partition(16 * MIB * n, 16 * MIB, "", n + 1)
                              for n in range(len(systems) if not logical else 1)],
        recognise=lambda _: next(kinds, "ext"), swap_finding=lambda image, wishes: Finding(),
        logical_volumes=lambda _: logical, file_systems={"ext": lambda _: waiting.pop(0)})
    image: Image = Blank()
    return survey([Disk("vda", image)], wanted, readers)


def masks_of(system: System, *paths: str) -> list[bool]:
    assert system.asked is not None
    return [system.asked.masks is not None and system.asked.masks.match(path) for path in paths]


def test_a_mask_goes_to_the_volume_that_is_mounted_deepest_without_its_mount_point() -> None:
    root, var = System("root", files={"/etc/fstab": FSTAB}), System("var")
    looked([root, var], Wanted(masks=("/var/cache/**", "/opt/*.iso")))
    assert masks_of(root, "/var/cache/a", "/cache/a", "/opt/a.iso") == [False, False, True]
    assert masks_of(var, "/var/cache/a", "/cache/a", "/opt/a.iso") == [False, True, False]
    assert root.asked is not None
    assert root.asked.swap_files == ("/swap.img",)


def test_a_volume_that_no_fstab_names_and_those_of_two_systems_get_no_masks_but_a_note() -> None:
    root, other = System("root", files={"/etc/fstab": FSTAB}), System("other")
    (result,) = looked([root, other], Wanted(masks=("/opt/**",)))
    assert masks_of(other, "/opt/a") == [False]
    assert "partition 2 (ext4): masks are not applied" in result.notes[0]
    two = [System(name, files={"/etc/fstab": FSTAB.replace(b"root", name.encode())}) for name in ("root", "b")]
    (result,) = looked(two, Wanted(masks=("/opt/**",)))
    assert masks_of(two[0], "/opt/a") == masks_of(two[1], "/opt/a") == [False]
    assert "several operating systems" in result.notes[0]


def test_of_two_copies_of_a_volume_none_gets_masks() -> None:
    root, var, copy = System("root", files={"/etc/fstab": FSTAB}), System("var"), System("var")
    looked([root, var, copy], Wanted(masks=("/var/cache/**",)))
    assert masks_of(var, "/cache/a") == masks_of(copy, "/cache/a") == masks_of(root, "/var/cache/a") == [False]


@pytest.mark.parametrize("failure", [Unfit("its journal is damaged"), RuntimeError("boom")])
def test_a_reader_that_fails_leaves_out_nothing_of_its_volume_alone(failure: Exception) -> None:
    good = Finding({Kind.SWAP: (Extent(MIB, MIB),)}, used=5)
    (result,) = looked([System("a", finding=failure), System("b", finding=good)], Wanted())
    assert result.exclusion.ranges == (Extent(17 * MIB, MIB),)
    assert result.exclusion.by_kind == {"swap": MIB}
    assert result.used == 5
    assert result.notes[0].startswith("disk vda, partition 1 (ext4): ")
    assert str(failure) in result.notes[0]


def test_a_range_outside_of_its_volume_condemns_the_volume() -> None:
    (result,) = looked([System("a", finding=Finding({Kind.FREE: (Extent(15 * MIB, 2 * MIB),)}))], Wanted(free=True))
    assert result.exclusion.ranges == ()
    assert "outside" in result.notes[0]


def test_ranges_of_a_logical_volume_are_mapped_through_its_pieces() -> None:
    pieces = [("disk vda, partition 1", 8 * MIB, 4 * MIB), ("disk vda, partition 1", MIB, 4 * MIB)]
    found = Finding({Kind.MASK: (Extent(3 * MIB, 2 * MIB),)})
    lv = LogicalVolume("root", "vg", tuple(LvmPiece(*piece) for piece in pieces))
    (result,) = looked([System("a", finding=found)], Wanted(), [lv])
    assert result.exclusion.ranges == (Extent(MIB, MIB), Extent(11 * MIB, MIB))


def test_what_was_seen_last_time_is_given_to_the_volume_of_that_uuid_alone() -> None:
    first = Finding(candidates={"/swap.img": "abc"})
    (result,) = looked([System("a", finding=first), System("b")], Wanted())
    again = [System("a"), System("b")]
    looked(again, Wanted(former=(result.exclusion,)))
    assert again[0].asked is not None
    assert again[0].asked.seen == {"/swap.img": "abc"}
    assert again[1].asked is not None
    assert again[1].asked.seen == {}


#: A partition, and the registry of a Windows that runs from it.
OWN = Partition(16 * MIB, 16 * MIB, "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", 1, "00112231-4455-6677-8899-aabbccddeeff")
REGISTRY = "/Windows/System32/config/SYSTEM"
KNOWS_OWN = {"\\DosDevices\\C:": b"DMIO:ID:" + bytes.fromhex("31221100554477668899aabbccddeeff")}


def windows(values: Mapping[str, bytes] = KNOWS_OWN, *, sequences: tuple[int, int] = (1, 1)) -> System:
    return System("a", "ntfs", files={REGISTRY: hive({"MountedDevices": values}, sequences=sequences)})


def asked(systems: Sequence[System], *others: str, refused: Unfit | None = None) -> list[Wishes]:
    """What volumes of NTFS are asked for, on one disk each, the first with partitions of other kinds besides.

    :param refused: what is wrong with the table of another disk.
    """
    waiting = list(systems)
    kinds = iter(["ntfs", *others, *("ntfs" for _ in systems[1:])])
    tables: Iterator[list[Partition]] = iter([
        [OWN, *(Partition(32 * MIB, 16 * MIB, "", 2) for _ in others)],
        *([Partition(16 * MIB, 16 * MIB, "")] for _ in systems[1:])])

    def partitions(_: Image) -> Sequence[Partition]:
        table = next(tables, None)
        if table is None:
            raise refused or AssertionError
        return table

    readers = Readers(
        partitions=partitions, recognise=lambda _: next(kinds), swap_finding=lambda image, wishes: Finding(),
        logical_volumes=lambda _: (), file_systems={"ntfs": lambda _: waiting.pop(0), "ext": lambda _: System("b")})
    disks = [Disk(f"vd{letter}", Blank()) for letter in "abc"[: len(systems) + bool(refused)]]
    survey(disks, Wanted(quiesced=True), readers)
    return [item.asked for item in systems if item.asked is not None]


@pytest.mark.parametrize("other", ["empty", "vfat", "unknown"])
def test_all_ntfs_of_a_windows_that_was_frozen_was_held_still(other: str) -> None:
    assert [(wishes.quiesced, wishes.doubt) for wishes in asked([windows(), System("d", "ntfs")], other)] == [
        (True, "")] * 2  # fmt: skip


@pytest.mark.parametrize("other", ["ext", "swap", "lvm", "btrfs", "LUKS"])
def test_ntfs_was_not_held_still_beside_what_windows_does_not_use(other: str) -> None:
    (wishes,) = asked([windows()], other)
    assert not wishes.quiesced
    assert "disk vda, partition 2" in wishes.doubt
    assert wishes.doubt.endswith("may be one of Linux")


def test_a_disk_whose_table_is_refused_may_be_that_of_a_linux_guest() -> None:
    (wishes,) = asked([windows()], refused=Unfit("the disk is a member of a software RAID"))
    assert not wishes.quiesced
    assert wishes.doubt.endswith("the partitions of disk vdb are not known")


@pytest.mark.parametrize("system", [
    System("a", "ntfs"),
    System("a", "ntfs", files={"/Windows/System32/drivers/etc/hosts": b"# hosts"}),
    System("a", "ntfs", files={REGISTRY: b"regf" * 2000}),
    windows({}),
    windows({"\\DosDevices\\C:": b"DMIO:ID:" + bytes(16), "\\DosDevices\\D:": KNOWS_OWN["\\DosDevices\\C:"]}),
], ids=["no files", "no registry", "garbage", "nothing told", "the registry of another volume"])  # fmt: skip
def test_without_a_windows_that_runs_from_one_of_the_disks_ntfs_may_be_that_of_a_linux_guest(system: System) -> None:
    """Its own disk may be one that the job leaves out, and files of some Windows may be a copy."""
    (wishes,) = asked([system])
    assert not wishes.quiesced
    assert wishes.doubt.endswith("no replicated disk has a Windows that runs from it as its C:")


def test_a_windows_that_has_not_written_its_registry_to_the_end_is_one() -> None:
    """While it runs, the latest changes are in the log of its registry."""
    (wishes,) = asked([windows(sequences=(2, 1))])
    assert wishes.quiesced


def test_a_registry_that_breaks_its_reader_is_no_proof() -> None:
    class Breaking(System):
        def read_file(self, path: str, most: int) -> bytes | None:
            raise RuntimeError("boom")

    (wishes,) = asked([Breaking("a", "ntfs")])
    assert not wishes.quiesced


def test_what_windows_has_frozen_is_no_matter_for_other_file_systems() -> None:
    system = System("root")
    looked([system], Wanted(quiesced=True))
    assert system.asked is not None
    assert (system.asked.quiesced, system.asked.doubt) == (True, "")
