"""How disks, partitions, logical volumes and file systems are put together, with stand-ins for the readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from understudy.model.exclusion import DiskSurvey
from understudy.model.extent import Extent
from understudy.units import MIB
from understudy.volumes import Finding, Image, Kind, Unfit, Wishes
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


@pytest.mark.parametrize(("other", "still"), [
    ("empty", True), ("vfat", True), ("unknown", True), ("ext", False), ("swap", False), ("lvm", False),
    ("btrfs", False), ("LUKS", False),
])
def test_ntfs_was_held_still_only_if_the_guest_is_windows(other: str, still: bool) -> None:
    kinds, ntfs = iter(["ntfs", other]), System("a", "ntfs")
    readers = Readers(
        partitions=lambda _: [Partition(0, 16 * MIB, ""), Partition(16 * MIB, 16 * MIB, "")],
        recognise=lambda _: next(kinds), swap_finding=lambda image, wishes: Finding(),
        logical_volumes=lambda _: (), file_systems={"ntfs": lambda _: ntfs, "ext": lambda _: System("b")})
    survey([Disk("vda", Blank())], Wanted(quiesced=True), readers)
    assert ntfs.asked is not None
    assert ntfs.asked.quiesced is still


def test_a_disk_whose_table_is_refused_may_be_that_of_a_linux_guest() -> None:
    ntfs, tables = System("a", "ntfs"), iter([True, False])

    def partitions(_: Image) -> list[Partition]:
        if not next(tables):
            raise Unfit("the disk is a member of a software RAID")
        return [Partition(0, 16 * MIB, "")]

    readers = Readers(
        partitions=partitions, recognise=lambda _: "ntfs", swap_finding=lambda image, wishes: Finding(),
        logical_volumes=lambda _: (), file_systems={"ntfs": lambda _: ntfs})
    survey([Disk("vda", Blank()), Disk("vdb", Blank())], Wanted(quiesced=True), readers)
    assert ntfs.asked is not None
    assert not ntfs.asked.quiesced
