"""What is left out of NTFS is what ntfsprogs say lies there, and no kept byte is lost."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.volumes.ntfs.volumes import (
    CLUSTER,
    LABEL,
    VSS,
    attribute_at,
    digest,
    first_cluster,
    names,
    places,
    record_at,
    with_first_cluster,
    with_log,
)
from tests.unit.volumes.whole_images import BytesImage, patched, run
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, merge, subtract, total
from understudy.volumes import FileSystem, Finding, Unfit, Wishes
from understudy.volumes.masks import Masks
from understudy.volumes.ntfs import open_ntfs

CACHE = Masks(["\\cache\\**\\*.BIN", "/CACHE/Über long.txt"], ignore_case=True)
EVERYTHING = Masks(["/**/*.*"], ignore_case=True)
PAGE_FILES = ("/pagefile.sys", "/swapfile.sys", "/hiberfil.sys")
KEPT = ("/Cache/twice.bin", "/Cache/cloud.bin")
QUIESCED = Wishes(masks=CACHE, free=True, quiesced=True)


def opened(data: bytes) -> FileSystem:
    return open_ntfs(BytesImage(data))


def found(data: bytes, wishes: Wishes = QUIESCED) -> Finding:
    return opened(data).find(wishes)


def ranges(data: bytes, kind: Kind, wishes: Wishes = QUIESCED) -> list[Extent]:
    return list(found(data, wishes).ranges.get(kind, ()))


def together(lists: list[list[Extent]]) -> list[Extent]:
    return merge(sorted((item for items in lists for item in items), key=lambda item: item.start))


def test_it_has_the_names_that_windows_knows(data: bytes, volume: Path) -> None:
    system = opened(data)
    assert (system.kind, system.label) == ("ntfs", LABEL)
    assert system.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", volume).strip().lower()


def test_files_are_read_whatever_the_case_of_their_path(data: bytes) -> None:
    system = opened(data)
    assert system.read_file("/windows/SYSTEM32/drivers/ETC/Hosts", 100) == b"# hosts"
    assert system.read_file("/Windows/System32/drivers/etc/hosts", 6) is None
    assert system.read_file("/Windows/System32", 100) is None
    assert system.read_file("/Windows/nothing/there", 100) is None
    assert system.read_file("/Cache/small.txt", 100) == b"in the record"


def test_page_files_go_but_their_first_cluster(data: bytes, volume: Path) -> None:
    expected = []
    for path in PAGE_FILES:
        at = attribute_at(data, record_at(data, path[1:]), 0x80)
        expected.append(subtract(places(volume, path), [Extent(first_cluster(data, at) * CLUSTER, CLUSTER)]))
    assert len(expected[0]) > 20
    assert ranges(data, Kind.SWAP) == together(expected)
    assert ranges(data, Kind.SWAP, Wishes(swap=False, quiesced=True)) == []


def test_masked_files_lie_where_ntfsinfo_says(data: bytes, volume: Path) -> None:
    """Among them a compressed file, one with holes, and one in a thousand pieces."""
    masked = [path for path in names(volume)
              if path.startswith("/Cache/") and path not in (*KEPT, "/Cache/small.txt")]  # fmt: skip
    assert len(masked) > 80
    assert ranges(data, Kind.MASK) == together([places(volume, path) for path in masked])
    assert "ATTRIBUTE_LIST" in run("ntfsinfo", "-f", "-F", "/Cache/pieces.bin", volume)


def test_free_clusters_are_as_many_as_ntfsinfo_counts(data: bytes, volume: Path) -> None:
    finding = found(data)
    counted = int(run("ntfsinfo", "-f", "-m", volume).split("Free Clusters:")[1].split()[0]) * CLUSTER
    assert total(finding.ranges[Kind.FREE]) == counted
    # The last sector holds the copy of the boot sector, and no whole cluster is left before it.
    assert finding.used == len(data) - CLUSTER - counted


def test_no_kept_byte_is_lost(data: bytes, volume: Path, tmp_path: Path) -> None:
    finding = found(data)
    left_out = together([list(items) for items in finding.ranges.values()])
    masked = together([list(finding.ranges[Kind.MASK]), list(finding.ranges[Kind.SWAP])])
    assert total(left_out) > 20 << 20
    punched = tmp_path / "punched"
    punched.write_bytes(patched(data, *((item.start, bytes(item.length)) for item in left_out)))
    kept = [path for path in names(volume) if not intersect(places(volume, path), masked)]
    kept = [path for number, path in enumerate(kept) if not path.startswith("/fill/") or number % 40 == 0]
    assert len(kept) > 60
    assert {path: digest(punched, path) for path in kept} == {path: digest(volume, path) for path in kept}
    assert names(punched) == names(volume)


def test_files_of_several_names_and_reparse_points_are_kept(data: bytes, volume: Path) -> None:
    finding = found(data)
    for path in KEPT:
        assert intersect(places(volume, path), list(finding.ranges[Kind.MASK])) == []
    assert any(note.startswith("2 files") for note in finding.notes)


def test_the_volumes_own_files_are_never_named(data: bytes, volume: Path) -> None:
    left_out = ranges(data, Kind.MASK, Wishes(masks=EVERYTHING, quiesced=True))
    assert intersect(places(volume, "/Keep/deep/a file of number 1.bin"), left_out)
    for path in ("/System Volume Information/tracking.bin", "/$LogFile", "/$MFT", "/$Bitmap", "/$UpCase", *PAGE_FILES):
        assert intersect(places(volume, path), left_out) == []


def test_a_masked_page_file_goes_whole_only_if_swap_is_replicated(data: bytes, volume: Path) -> None:
    masks = Masks(["/pagefile.sys"], ignore_case=True)
    assert ranges(data, Kind.MASK, Wishes(masks=masks, quiesced=True)) == []
    assert ranges(data, Kind.MASK, Wishes(swap=False, masks=masks, quiesced=True)) == places(volume, "/pagefile.sys")


def test_of_a_volume_in_use_only_page_files_that_did_not_move_are_left_out(data: bytes) -> None:
    first = found(data, Wishes(masks=CACHE, free=True))
    assert first.ranges == {}
    assert sorted(first.candidates) == sorted(PAGE_FILES)
    second = found(data, Wishes(masks=CACHE, free=True, seen=first.candidates))
    assert list(second.ranges) == [Kind.SWAP]
    assert list(second.ranges[Kind.SWAP]) == ranges(data, Kind.SWAP)
    assert len([note for note in second.notes if "frozen" in note]) == 2
    moved = {**first.candidates, "/pagefile.sys": "elsewhere"}
    third = ranges(data, Kind.SWAP, Wishes(seen=moved))
    assert 0 < total(third) < total(second.ranges[Kind.SWAP])


@pytest.mark.parametrize(("first", "second", "dirty", "clean"), [
    (2, 2, 0, True), (0, 0, 0, False), (2, 0, 0, False), (0, 2, 0, False), (2, 2, 1, False),
])  # fmt: skip
def test_a_log_that_says_it_was_closed_stands_for_frozen(
    data: bytes, first: int, second: int, dirty: int, clean: bool
) -> None:
    about = attribute_at(data, record_at(data, "$Volume"), 0x70)
    unmounted = patched(with_log(data, first, second), (about + 24 + 10, struct.pack("<H", dirty)))
    assert (Kind.MASK in found(unmounted, Wishes(masks=CACHE)).ranges) is clean


def test_free_clusters_stay_where_windows_keeps_shadow_copies(data: bytes) -> None:
    finding = found(patched(data, (0x1E00, VSS)))
    assert sorted(finding.ranges) == [Kind.MASK, Kind.SWAP]
    assert any("shadow copies" in note for note in finding.notes)


@pytest.mark.parametrize("text", [b"PAGEDU64", b"PAGEDUMP"])
def test_a_crash_dump_is_kept(data: bytes, volume: Path, text: bytes) -> None:
    finding = found(in_first_cluster(data, "pagefile.sys", text))
    assert intersect(places(volume, "/pagefile.sys"), list(finding.ranges[Kind.SWAP])) == []
    assert any("crash dump" in note for note in finding.notes)


@pytest.mark.parametrize("text", [b"hibr", b"HIBR", b"RSTR", b"????"])
def test_nothing_goes_of_a_volume_on_which_windows_is_hibernated(data: bytes, text: bytes) -> None:
    finding = found(in_first_cluster(data, "hiberfil.sys", text))
    assert finding.ranges == {}
    assert finding.candidates == {}
    assert "hibernated" in finding.notes[0]
    assert finding.asleep
    assert found(in_first_cluster(data, "hiberfil.sys", b"WAKE")) == found(data)


@pytest.mark.parametrize("flag", [0x400, 0x1000, 0x4000])
def test_a_page_file_that_is_encrypted_or_not_there_is_kept(data: bytes, volume: Path, flag: int) -> None:
    record = record_at(data, "swapfile.sys")
    finding = found(patched(data, (attribute_at(data, record, 0x10) + 24 + 32, struct.pack("<I", flag))))
    assert intersect(places(volume, "/swapfile.sys"), list(finding.ranges[Kind.SWAP])) == []
    assert any("/swapfile.sys" in note for note in finding.notes)


@pytest.mark.parametrize("place", ["/pagefile.sys", "/$MFT", "free", "behind"])
def test_a_file_that_claims_what_it_cannot_have_condemns_the_volume(data: bytes, volume: Path, place: str) -> None:
    attribute = attribute_at(data, record_at(data, "swapfile.sys"), 0x80)
    others = {"free": found(data).ranges[Kind.FREE][-1].start, "behind": len(data)}
    start = others.get(place) or places(volume, place)[0].start
    with pytest.raises(Unfit):
        found(with_first_cluster(data, attribute, start // CLUSTER), Wishes(quiesced=True))


def in_first_cluster(data: bytes, name: str, text: bytes) -> bytes:
    at = attribute_at(data, record_at(data, name), 0x80)
    return patched(data, (first_cluster(data, at) * CLUSTER, text))
