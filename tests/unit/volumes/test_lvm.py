"""Logical volumes lie where lvs says; what is not plain is named and refused.

LVM works on loop devices without device-mapper, with settings of its own.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.volumes.whole_images import BytesImage, damaged, empty, patched, refused, run
from understudy.model.extent import Extent
from understudy.units import KIB, MIB
from understudy.volumes import Unfit
from understudy.volumes.lvm import LogicalVolume, Piece, logical_volumes
from understudy.volumes.lvm_labels import lvm_crc, read_label
from understudy.volumes.lvm_text import parse

SIZE, EXTENT = 32 * MIB, 4 * MIB
PV_ID = "a" * 32
AREA_AT, AREA = 4 * KIB, MIB - 4 * KIB
HEADERS = [Extent(512, 200), Extent(AREA_AT, 200), Extent(AREA_AT + 512, 4 * KIB)]
PLAIN = 'id = "l1" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1'
LINEAR = 'start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", {at}]'


@dataclass
class Bench:
    """LVM over two disks."""

    paths: tuple[Path, Path]
    devices: tuple[str, str]
    env: Mapping[str, str]

    def lvm(self, *words: str) -> str:
        return run("lvm", words[0], "--driverloaded", "n", *words[1:], env=self.env)

    def create(self, *words: str) -> None:
        self.lvm("lvcreate", "-an", "-Zn", "-Wn", *words, "vg")

    def images(self) -> list[tuple[str, BytesImage]]:
        os.sync()
        return [(f"disk{number}", BytesImage(path.read_bytes())) for number, path in enumerate(self.paths)]

    def told(self, which: str = "vg") -> dict[str, list[Piece]]:
        """From lvs, by name."""
        found: dict[str, list[Piece]] = {}
        starts = self.lvm("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pv_name,pe_start")
        first = {name: int(start) for name, start in (line.split() for line in starts.splitlines())}
        out = self.lvm("lvs", "--segments", "--noheadings", "--units", "b", "--nosuffix", "-o",
                       "lv_name,seg_size,devices", "-O", "lv_name,seg_start", which)  # fmt: skip
        for line in out.splitlines():
            name, size, device, extent = re.fullmatch(r"\s*(\S+)\s+(\d+)\s+(\S+)\((\d+)\)\s*", line).groups()  # type: ignore[union-attr]
            disk = f"disk{self.devices.index(device)}"
            found.setdefault(name, []).append(Piece(disk, first[device] + int(extent) * EXTENT, int(size)))
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if os.geteuid():
        pytest.skip("LVM needs root")
    paths = (empty(tmp_path / "disk0", SIZE), empty(tmp_path / "disk1", SIZE))
    devices: list[str] = []
    try:
        for path in paths:
            devices.append(run("losetup", "--find", "--show", path).strip())
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        system = tmp_path / "lvm"
        system.mkdir()
        (system / "lvm.conf").write_text(
            f'devices {{ scan = ["/dev"] filter = [{accepted}, "r|.*|"] use_devicesfile = 0 sysfs_scan = 0\n'
            "obtain_device_list_from_udev = 0 }\n"
            f'global {{ use_lvmlockd = 0 use_lvmpolld = 0 event_activation = 0 locking_dir = "{system}/lock" }}\n'
            "backup { backup = 0 archive = 0 }\n"
            "activation { monitoring = 0 udev_sync = 0 udev_rules = 0 verify_udev_operations = 0 }\n"
        )
        bench = Bench(paths, (devices[0], devices[1]), {"LVM_SYSTEM_DIR": str(system), "LVM_SUPPRESS_FD_WARNINGS": "1"})
        bench.lvm("pvcreate", "-y", *devices)
        bench.lvm("vgcreate", "vg", *devices)
        yield bench
    finally:
        for device in devices:
            run("losetup", "-d", device)


def test_pieces_are_where_lvs_says(bench: Bench) -> None:
    bench.create("-L", "8M", "-n", "root", "--addtag", "a")
    bench.create("-L", "4M", "-n", "swap")
    bench.lvm("lvextend", "-L", "12M", "vg/root")
    bench.create("-L", "30M", "-n", "over-both")
    found = logical_volumes(bench.images())
    assert {item.name: list(item.pieces) for item in found} == bench.told()
    assert {(item.vg, item.refused) for item in found} == {("vg", "")}
    assert len([item for item in found if len({piece.pv for piece in item.pieces}) == 2]) == 1


def test_a_striped_volume_is_refused_and_the_others_are_not(bench: Bench) -> None:
    bench.create("-L", "8M", "-i", "2", "-n", "striped")
    bench.create("-L", "8M", "-n", "plain")
    found = {item.name: item for item in logical_volumes(bench.images())}
    assert found["striped"].refused == "it is striped"
    assert found["striped"].pieces == ()
    assert list(found["plain"].pieces) == bench.told("vg/plain")["plain"]


def test_a_group_of_which_a_disk_is_missing_is_refused(bench: Bench) -> None:
    bench.create("-L", "8M", "-n", "plain")
    for image in bench.images():
        (found,) = logical_volumes([image])
        assert "not among this machine's disks" in found.refused
        assert found.pieces == ()


def test_disks_of_different_times_are_refused(bench: Bench) -> None:
    bench.create("-L", "8M", "-n", "plain")
    old = bench.images()
    bench.create("-L", "8M", "-n", "later")
    found = logical_volumes([old[0], bench.images()[1]])
    assert found
    assert all("differently" in item.refused for item in found)


def test_the_description_may_go_round_the_end_of_its_area(bench: Bench) -> None:
    bench.create("-L", "8M", "-n", "plain")
    for number in range(3):
        bench.lvm("vgchange", "--addtag", f"{number}" + "x" * 900, "vg")
    images = bench.images()
    wrapped = BytesImage(moved(images[0][1].data))
    assert logical_volumes([("disk0", wrapped), images[1]]) == logical_volumes(images)


def test_damage_never_moves_a_volume(bench: Bench) -> None:
    bench.create("-L", "8M", "-n", "root")
    images = bench.images()
    good = logical_volumes(images)
    start = images[0][1].data[: 2 * MIB]
    for seed in range(100):
        bad = BytesImage(damaged(start, seed, HEADERS) + images[0][1].data[2 * MIB :])
        assert refused(lambda bad=bad: logical_volumes([("disk0", bad), images[1]])) or (  # type: ignore[misc]
            logical_volumes([("disk0", bad), images[1]]) == good)  # fmt: skip


def moved(data: bytes) -> bytes:
    """With the description at the end of its area, so that it goes on behind the area's header."""
    offset, length, crc, flags = struct.unpack_from("<QQII", data, AREA_AT + 40)
    text = data[AREA_AT + offset : AREA_AT + offset + length]
    size = struct.unpack_from("<Q", data, AREA_AT + 32)[0]
    place = size - 1024
    data = patched(data, (AREA_AT + place, text[:1024]), (AREA_AT + 512, text[1024:]))
    data = patched(data, (AREA_AT + 40, struct.pack("<QQII", place, length, crc, flags)))
    return patched(data, (AREA_AT, struct.pack("<I", lvm_crc(data[AREA_AT + 4 : AREA_AT + 512]))))


def written(volumes: str, *, planned: int = 0, group: str = "", pv: str = "") -> BytesImage:
    """A physical volume of 32 MiB that describes a group as given; no tool makes these without device-mapper."""
    disk = f'id = "{PV_ID}" status = ["ALLOCATABLE"] pe_start = 2048 pe_count = 7 {pv}'
    head = f'id = "g" seqno = 1 status = ["RESIZEABLE", "READ", "WRITE"] extent_size = 8192 {group}'
    body = f"{head}\nphysical_volumes {{ pv0 {{ {disk} }} }}\nlogical_volumes {{ {volumes} }}"
    text = f"vg {{ {body} }}\n# the end\nversion = 1\n".encode() + b"\0"
    rest = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, AREA_AT, AREA)
    rest += struct.pack("<QQII", 512, len(text), lvm_crc(text), 0) + struct.pack("<QQII", planned, planned, 0, 0)
    header = rest.ljust(508, b"\0")
    label = struct.pack("<I8s", 32, b"LVM2 001") + PV_ID.encode()
    label += struct.pack("<Q6Q", SIZE, MIB, 0, 0, 0, AREA_AT, AREA)
    label = label.ljust(492, b"\0")
    data = patched(bytes(SIZE), (512, struct.pack("<8sQI", b"LABELONE", 1, lvm_crc(label)) + label))
    return BytesImage(patched(data, (AREA_AT, struct.pack("<I", lvm_crc(header)) + header), (AREA_AT + 512, text)))


def found_in(volumes: str, **settings: str | int) -> dict[str, LogicalVolume]:
    image = written(volumes, **settings)  # type: ignore[arg-type]
    return {item.name: item for item in logical_volumes([("d", image)])}


def volume(name: str, segment: str, head: str = PLAIN) -> str:
    return f"{name} {{ {head} segment1 {{ {segment} }} }}\n"


def test_a_written_description_is_read() -> None:
    found = found_in(volume("a", LINEAR.format(at=1)))
    assert found == {"a": LogicalVolume("a", "vg", (Piece("d", MIB + EXTENT, 2 * EXTENT),))}


def test_the_origin_of_a_snapshot_and_what_it_keeps_are_refused() -> None:
    snapshot = 'start_extent = 0 extent_count = 2 type = "snapshot" chunk_size = 8 origin = "a" cow_store = "cow"'
    plain = "".join(volume(name, LINEAR.format(at=at)) for name, at in (("a", 0), ("cow", 2), ("b", 4)))
    found = found_in(plain + volume("snapshot0", snapshot))
    assert [name for name, item in found.items() if not item.refused] == ["b"]
    assert "snapshot" in found["a"].refused
    assert found["snapshot0"].refused == "it is of type snapshot"


@pytest.mark.parametrize("kind", ["thin", "thin-pool", "raid1", "mirror", "cache", "vdo", "integrity", "zero", "error"])
def test_what_is_not_linear_is_refused_with_its_type(kind: str) -> None:
    segment = f'start_extent = 0 extent_count = 2 type = "{kind}" data = "part"'
    hidden = 'id = "l2" status = ["READ", "WRITE"] segment_count = 1'
    found = found_in(volume("a", segment) + volume("part", LINEAR.format(at=0), hidden))
    assert found["a"].refused == f"it is of type {kind}"
    assert found["part"].refused == "it is part of another logical volume"


@pytest.mark.parametrize(("settings", "reason"), [
    ({"group": 'lock_type = "sanlock"'}, "shared"),
    ({"pv": 'flags = ["MISSING"]'}, "missing"),
])  # fmt: skip
def test_a_group_that_is_not_all_this_machines_is_refused(settings: dict[str, str], reason: str) -> None:
    found = found_in(volume("a", LINEAR.format(at=0)), **settings)
    assert reason in found["a"].refused


def test_a_volume_that_is_being_moved_is_refused() -> None:
    locked = PLAIN.replace('"VISIBLE"', '"VISIBLE", "LOCKED"')
    assert found_in(volume("a", LINEAR.format(at=0), locked))["a"].refused
    assert found_in(volume("a", LINEAR.format(at=0).replace("pv0", "pvmove0")))["a"].refused


@pytest.mark.parametrize("volumes", [
    volume("a", LINEAR.format(at=6)),
    volume("a", LINEAR.format(at=-1)),
    volume("a", LINEAR.format(at=0).replace("start_extent = 0", "start_extent = 1")),
    volume("a", LINEAR.format(at=0)) + volume("b", LINEAR.format(at=1)),
    volume("a", LINEAR.format(at=0), PLAIN.replace("segment_count = 1", "segment_count = 2")),
    volume("a", LINEAR.format(at=0)) + volume("a", LINEAR.format(at=2)),
    "a { ",
])  # fmt: skip
def test_a_description_that_makes_no_sense_condemns_all(volumes: str) -> None:
    with pytest.raises(Unfit):
        found_in(volumes)


def test_a_change_under_way_and_a_second_disk_of_one_identity_condemn_all() -> None:
    with pytest.raises(Unfit, match="changed"):
        found_in(volume("a", LINEAR.format(at=0)), planned=4096)
    image = written(volume("a", LINEAR.format(at=0)))
    with pytest.raises(Unfit, match="same identity"):
        logical_volumes([("d", image), ("e", image)])


@pytest.mark.parametrize("offset", [512 + 30, 512 + 40, AREA_AT + 20, AREA_AT + 600])
def test_a_wrong_checksum_condemns_all(offset: int) -> None:
    image = written(volume("a", LINEAR.format(at=0)))
    with pytest.raises(Unfit, match="damaged"):
        read_label(BytesImage(patched(image.data, (offset, bytes([image.data[offset] ^ 1])))))


def test_texts_are_parsed() -> None:
    text = 'a = 1 # one = 2\nb { c = "x\\"}#" d = ["p", 3, -4] e = [] }\nf = 1.5'
    assert parse(text) == {"a": 1, "b": {"c": 'x"}#', "d": ["p", 3, -4], "e": []}, "f": 1.5}


@pytest.mark.parametrize("text", [
    "a", "a =", "a { b = 1", "}", "a = 1 a = 2", "a = [1 2]", "a = [[1]]", 'a = "x', "a = b", "a = [1,", "= 1",
    "a { " * 20 + "} " * 20,
])  # fmt: skip
def test_a_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Unfit):
        parse(text)
