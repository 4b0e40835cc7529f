"""What a job leaves out of real VMs: E of each restore point, state that moves between points, and who applies it.

One VM goes through a life: off, running and frozen, running and cut off, with other settings, lost tracking, a lost
record, failover, a new name. After each step its new point is compared with what the guest had.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.system.aftermath import remove_vms
from tests.system.installation import Installation, assert_same
from tests.system.steps import INCREMENTAL, MIB, Instant, replicate_off, replicate_paused, run_in_replica
from tests.unit.volumes.ntfs import volumes as ntfs
from tests.unit.volumes.xfs import images as xfs
from understudy.lab.commands import run
from understudy.lab.disks import DataDisk
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.lab.writer import GuestWriter, verify_files
from understudy.model.exclusion import unpack
from understudy.model.extent import PART, Extent, total

NAME = "spare"
BIG = 4 * MIB
#: An extent of a file begins and ends somewhere inside a part of 64 KiB, and only whole parts are left out (G13).
BORDERS = 2 * PART
MASKS = ("/cache/**", f"{NAME}:/srv/cache/**", f"{NAME}:\\Cache\\**")
FSTAB = "LABEL=files / ext4 defaults 0 1\nLABEL=lab /srv xfs defaults 0 2\n"


@dataclass
class Scene:
    """The VM, its job, and what each of its points must show."""

    installation: Installation
    vm: LabVm
    points: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        return self.installation.place

    def left_out(self, point: str) -> dict[str, tuple[Extent, ...]]:
        """E of a point, by disk, straight from its file."""
        path = self.installation.store / f"{NAME}_replica" / "points" / f"{point}.excluded"
        document = json.loads(path.read_text()) if path.exists() else {"disks": []}
        return {item["disk"]: unpack(item["packed"]) for item in document["disks"]}

    def images(self, point: str) -> dict[str, str]:
        """By disk, the layer that shows a point."""
        (found,) = [item for item in self.installation.points(f"{NAME}_replica") if item["id"] == point]
        return {disk["name"]: disk["image"] for disk in found["disks"]}

    def remember(self, point: str, copies: dict[str, Path]) -> dict[str, Path]:
        """The point must show these copies with E zeroed, from now on; the copies are changed."""
        for disk, ranges in self.left_out(point).items():
            zero(copies[disk], ranges)
        self.points[point] = copies
        return copies

    def expected(self, instant: Instant) -> dict[str, Path]:
        """As :meth:`remember`, for a run on a VM that stood still."""
        return self.remember(instant.point, instant.copies)

    def check_points(self) -> None:
        """Every point that is still there and was compared when it was new shows the same."""
        for item in self.installation.points(f"{NAME}_replica"):
            for disk in item["disks"]:
                if item["id"] in self.points:
                    assert_same(disk["image"], self.points[item["id"]][disk["name"]])

    def raw(self, point: str, disk: str) -> Path:
        """A copy of a disk of a point, which may be written to."""
        path = self.place / f"looked-at-{disk}.raw"
        run(["qemu-img", "convert", "-O", "raw", self.images(point)[disk], str(path)])
        return path


def zero(path: Path, ranges: tuple[Extent, ...]) -> None:
    with path.open("r+b") as handle:
        for item in ranges:
            os.pwrite(handle.fileno(), bytes(item.length), item.start)


def parts_with_data(path: Path) -> int:
    """How many parts of 64 KiB of a raw image are not zero."""
    with path.open("rb") as handle:
        return sum(any(part) for part in iter(lambda: handle.read(PART), b""))


def tree(seed: bytes) -> dict[str, bytes]:
    """Files to keep and to leave out, by path; each one's content is its own."""
    names = [*(f"/keep/{name}" for name in ("stays", "in")), *(f"/cache/{name}" for name in ("a", "b", "out"))]
    return {name: hashlib.shake_256(seed + name.encode()).digest(BIG) for name in names}


def make_ext(place: Path) -> Path:
    """The guest's root, as its fstab says."""
    for name, content in {**tree(b"ext"), "/etc/fstab": FSTAB.encode()}.items():
        path = place / "tree" / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    image = place / "ext.img"
    with image.open("wb") as handle:
        handle.truncate(96 * MIB)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    run(["mkfs.ext4", "-q", "-L", "files", "-E", lazy, "-d", str(place / "tree"), str(image)])
    return image


def make_strange(place: Path) -> Path:
    """A disk with what nobody may look into: encrypted, damaged, of an unknown feature, hibernated."""
    image, size = place / "strange.img", 8 * MIB
    volumes = [bytearray(os.urandom(size)), *(ext_volume(place / "odd.img", size) for _ in range(2)),
               bytearray(os.urandom(size))]  # fmt: skip
    volumes[0][:512] = b"LUKS\xba\xbe\x00\x02".ljust(512, b"\0")
    volumes[1][1024 + 0x78] ^= 1  # of the label, which the checksum covers
    volumes[2][1024 + 0x60 + 3] |= 0x40
    volumes[3][:4096] = struct.pack("<II", 1, size // 4096 - 1).rjust(1032, b"\0").ljust(4086, b"\0") + b"S1SUSPEND\0"
    table = bytearray(512)
    for number, volume in enumerate(volumes):
        start = 1 + number * size // MIB
        kind = 0x82 if number == 3 else 0x83
        struct.pack_into("<B3xB3xII", table, 446 + 16 * number, 0, kind, start * MIB // 512, len(volume) // 512)
    table[510:] = b"\x55\xaa"
    image.write_bytes(bytes(table).ljust(MIB, b"\0") + b"".join(volumes))
    return image


def ext_volume(path: Path, size: int) -> bytearray:
    path.write_bytes(bytes(size))
    run(["mkfs.ext4", "-q", "-F", str(path)])
    return bytearray(path.read_bytes())


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Scene]:
    """A VM that never ran, and its job, which leaves out all that it may."""
    place = lab.directory / "test-exclusions"
    place.mkdir()
    files = {"lab" + name.replace("/cache", "/cache"): content for name, content in tree(b"xfs").items()}
    contents = [make_ext(place), xfs.make(place, {name[3:]: content for name, content in files.items()}),
                make_strange(place), ntfs.make_volume(place)]
    disks = [DataDisk(content.stat().st_size, content=content) for content in contents]
    vm = LabVm.create(lab.alpha, NAME, lab.guest, data_disks=disks)
    installation = Installation(lab, place)
    masks = [word for mask in MASKS for word in ("--exclude", mask)]
    installation.job("nightly", NAME, options=("--points", "3", "--free-blocks", "exclude", *masks))
    yield Scene(installation, vm)
    remove_vms(lab)


def test_a_vm_that_is_off_arrives_as_it_is_with_e_zeroed_and_nothing_of_e_travels(scene: Scene) -> None:
    instant = replicate_off(scene.installation, scene.vm, "nightly")
    whole = {disk: parts_with_data(copy) for disk, copy in instant.copies.items()}
    shown = scene.expected(instant)
    scene.check_points()
    for disk, copy in shown.items():
        print(disk, instant.disk(disk), whole[disk]*PART, parts_with_data(copy)*PART)
        assert instant.disk(disk)["sent_bytes"] == parts_with_data(copy) * PART
