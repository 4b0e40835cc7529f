"""Disks: tables of partitions with contents, and what is left of a disk without the ranges that a survey leaves out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.unit.volumes.ext.images import make_image
from tests.unit.volumes.whole_images import BytesImage, empty, patched, run
from understudy.model.exclusion import DiskSurvey
from understudy.mover.survey_child import READERS
from understudy.units import MIB
from understudy.volumes.survey import Disk, Wanted, survey

PAGE = 4096
#: What files are filled with: those that must stay, those that masks name, those below mount points; and swap.
KEPT, MASKED, HIDDEN, SWAPPED = b"K", b"M", b"H", b"S"


@dataclass(frozen=True)
class Part:
    """A partition: its content, and its identity and name in a GPT."""

    content: bytes
    uuid: str = ""
    name: str = ""


def ext4(place: Path, files: Mapping[str, bytes], *options: str, size: int = 8 * MIB) -> bytes:
    """A volume with files of these contents; one letter stands for 300 KB of it."""
    tree = place / "tree"
    for path, content in files.items():
        (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tree / path.lstrip("/")).write_bytes(content * 300_000 if len(content) == 1 else content)
    data = make_image(place, tree, "-t", "ext4", "-b", "4096", *options, size=size).read_bytes()
    shutil.rmtree(tree)
    return data


def swap(place: Path, size: int = 4 * MIB) -> bytes:
    """A swap area that has been used everywhere."""
    path = empty(place / "swap", size)
    run("mkswap", path)
    data = path.read_bytes()
    path.unlink()
    return patched(data, (PAGE, SWAPPED * (size - PAGE)))


def gpt(place: Path, parts: Sequence[Part]) -> bytes:
    """A disk with partitions in this order, numbered backwards."""
    words: list[str] = []
    at = 2048
    starts: list[int] = []
    for number, part in zip(range(len(parts), 0, -1), parts, strict=True):
        starts.append(at * 512)
        words += ["-n", f"{number}:{at}:{at + len(part.content) // 512 - 1}"]
        words += ["-u", f"{number}:{part.uuid}"] if part.uuid else []
        words += ["-c", f"{number}:{part.name}"] if part.name else []
        at += -(-len(part.content) // MIB) * 2048
    path = empty(place / "disk", at * 512 + MIB)
    run("sgdisk", *words, path)
    return patched(path.read_bytes(), *((start, part.content) for start, part in zip(starts, parts, strict=True)))


def looked(disks: Mapping[str, bytes], wanted: Wanted) -> tuple[DiskSurvey, ...]:
    """What the readers find, in this process."""
    return survey([Disk(name, BytesImage(data)) for name, data in disks.items()], wanted, READERS)


def without(data: bytes, found: DiskSurvey) -> bytes:
    """The disk as it is on the replica."""
    return patched(data, *((item.start, bytes(item.length)) for item in found.exclusion.ranges))


def pages(data: bytes, letter: bytes) -> int:
    """How many pages of a letter are on a disk."""
    return data.count(letter * PAGE)
