"""A disk of Windows: page files and what masks with drive letters name, through the survey of whole disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.volumes.disks import Part, gpt, looked
from tests.unit.volumes.ntfs.test_ranges import in_first_cluster
from tests.unit.volumes.ntfs.volumes import C_DRIVE, D_DRIVE, places, with_log
from tests.unit.volumes.test_whole_disks import kinds_in_the_process
from tests.unit.volumes.whole_images import empty, run
from understudy.model.exclusion import excludable
from understudy.model.extent import Extent, intersect, merge, total
from understudy.units import MIB
from understudy.volumes.survey import Wanted

PAGE_FILES = ("/pagefile.sys", "/swapfile.sys")
MASKS = ("C:\\Cache\\deep\\**", "\\Windows\\Temp\\**", "d:\\*.bin", "E:\\**\\x")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A volume with one file, which is called as one of the first volume."""
    image = empty(tmp_path / "second", 8 * MIB)
    run("mkntfs", "-F", "-q", "-f", "-c", "4096", image)
    for name in ("a.bin", "a.txt"):
        (tmp_path / name).write_bytes(b"x" * 500_000)
        run("ntfscp", "-q", "-f", image, tmp_path / name, name)
    return image


def on_disk(ranges: list[Extent], start: int) -> list[Extent]:
    return [Extent(start + item.start, item.length) for item in ranges]


def joined(*lists: list[Extent]) -> list[Extent]:
    return merge(sorted((item for items in lists for item in items), key=lambda item: item.start))


def files_of(volume: Path, *paths: str) -> list[Extent]:
    return joined(*(places(volume, path) for path in paths))


def test_masks_go_to_the_drives_that_the_registry_names(data: bytes, volume: Path, second: Path) -> None:
    disk = gpt(second.parent, [Part(data, C_DRIVE), Part(second.read_bytes(), D_DRIVE)])
    (found,) = looked({"sda": disk}, Wanted(masks=MASKS, quiesced=True))
    deep = [f"/Cache/deep/er/a file of number {number}.bin" for number in range(40)]
    first, other = MIB, MIB + len(data)
    masked = joined(on_disk(files_of(volume, "/Windows/Temp/a.tmp", *deep), first),
                    on_disk(files_of(second, "/a.bin"), other))
    paged = on_disk(files_of(volume, *PAGE_FILES), first)
    hiber = on_disk(files_of(volume, "/hiberfil.sys"), first)
    ranges = list(found.exclusion.ranges)
    assert intersect(ranges, joined(masked, paged, hiber)) == ranges
    assert total(intersect(ranges, masked)) == total(excludable(masked, len(disk))) > 700_000
    assert total(intersect(ranges, paged)) > 0
    assert total(intersect(ranges, on_disk(files_of(second, "/a.txt"), other))) == 0
    assert sorted({note.split(": ", 1)[1] for note in found.notes}) == [
        "the mask E:\\**\\x is not applied, for E: is not known: no volume has it"]  # fmt: skip


def test_of_a_hibernated_windows_nothing_goes_of_its_other_volumes_too(data: bytes, second: Path) -> None:
    asleep = in_first_cluster(data, "hiberfil.sys", b"HIBR")
    disks = {"sda": gpt(second.parent, [Part(asleep, C_DRIVE)]), "sdb": second.read_bytes()}
    awake = gpt(second.parent, [Part(data, C_DRIVE)])
    wanted = Wanted(masks=("\\*.bin",), free=True, quiesced=True)
    assert sorted(looked({**disks, "sda": awake}, wanted)[1].exclusion.by_kind) == ["free", "mask"]
    for found in looked(disks, wanted):
        assert (found.exclusion.ranges, found.exclusion.candidates) == ((), {})
        assert found.notes[-1] == "nothing is left out: the guest is hibernated"


def test_the_process_without_rights_finds_the_same_on_disks_of_windows(data: bytes, second: Path) -> None:
    disk = second.parent / "sda"
    disk.write_bytes(gpt(second.parent, [Part(data, C_DRIVE)]))
    assert kinds_in_the_process(second.parent, {"sda": disk, "sdb": second}) == [["free", "swap"], ["free"]]


def test_page_files_of_a_running_windows_go_when_they_are_seen_a_second_time(data: bytes, volume: Path) -> None:
    """Also of a copy of the volume beside it, each by its own place."""
    running = with_log(data, 0)
    disk = gpt(volume.parent, [Part(running), Part(running)])
    (first,) = looked({"sda": disk}, Wanted())
    assert first.exclusion.ranges == ()
    assert len(first.exclusion.candidates) == 2 * 3
    (second,) = looked({"sda": disk}, Wanted(former=(first.exclusion,)))
    assert sorted(second.exclusion.by_kind) == ["swap"]
    ranges = list(second.exclusion.ranges)
    for start in (MIB, MIB + len(data)):
        files = on_disk(files_of(volume, *PAGE_FILES, "/hiberfil.sys"), start)
        assert total(intersect(ranges, files)) > 0
    half = {name: text for name, text in first.exclusion.candidates.items() if "partition 1" in name}
    (third,) = looked({"sda": disk}, Wanted(former=(type(first.exclusion)("sda", "", {}, half),)))
    assert 0 < total(list(third.exclusion.ranges)) < total(ranges)


@pytest.mark.parametrize("copied", [False, True], ids=["a data disk", "a copy of the files of a Windows"])
def test_of_ntfs_of_a_linux_guest_whose_own_disk_the_job_leaves_out_nothing_goes(
    data: bytes, second: Path, copied: bool
) -> None:
    """It writes NTFS through FUSE, also when it is frozen."""
    disk = gpt(second.parent, [Part(data if copied else second.read_bytes(), D_DRIVE)])
    (found,) = looked({"sdb": disk}, Wanted(swap=False, masks=("\\*.bin",), free=True, quiesced=True))
    assert found.exclusion.ranges == ()
    assert [note.partition("; ")[2] for note in found.notes] == [
        "the guest may be a Linux, which still writes NTFS when it is frozen: "
        "no replicated disk has a Windows that runs from it as its C:"] * 2  # fmt: skip
    (own,) = looked({"sda": gpt(second.parent, [Part(data, C_DRIVE)])}, Wanted(free=True, quiesced=True))
    assert sorted(own.exclusion.by_kind) == ["free", "swap"]
