"""Snapshots of a busy XFS file system: nothing is left out that the kernel's replay of the log shows to be kept.

The file system lies in a file on another XFS, whose reflink copies are the atomic snapshots. The truth is the kernel's:
a second copy is mounted, which replays its log, and its files are asked for their extents. All mounts live in a mount
namespace of one child process, and their loop devices go with them.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import random
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import pytest

from tests.unit.volumes.xfs.images import MIB, free_blocks, image_of, xfs_db
from understudy.lab.commands import run
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, clip, merge, subtract, total, unite
from understudy.volumes import Wishes
from understudy.volumes.masks import Masks
from understudy.volumes.xfs import open_xfs

LIVE, FROZEN = 22, 10
#: So many snapshots are taken before the writers begin to make files durable.
QUIET = 10
ALL = Wishes(masks=Masks(["/cache/"]), free=True)
_FIEMAP = 0xC020660B
_LAST, _NO_PLACE = 1, 2 | 4 | 0x200  # unknown, not yet allocated, inside the inode
_CLONE = 0x40049409


class Seen(TypedDict):
    """What one snapshot showed; ``wrong`` counts bytes left out that must not be, ``cycle`` rounds of the log."""

    frozen: bool
    left_out: int
    wrong: int
    notes: list[str]
    cycle: int


class Punched(TypedDict):
    """What a file system lost by having all that is left out set to zeros."""

    kinds: dict[str, int]
    fragments: int
    damaged: list[str]
    cache: int
    header: bool


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Seen], Punched]]:
    place = tmp_path_factory.mktemp("xfs-crash")
    search = os.pathsep.join(map(os.path.abspath, sys.path))
    command = ["unshare", "--mount", "--propagation", "private", "env", f"PYTHONPATH={search}"]
    output = run([*command, sys.executable, "-m", __name__, str(place)], cwd=Path(__file__).parents[2], timeout_s=400)
    yield tuple(json.loads(output))
    (place / "outer.img").unlink()


def test_no_snapshot_leaves_out_what_is_kept(results: tuple[list[Seen], Punched]) -> None:
    snapshots, _ = results
    assert len(snapshots) >= 30
    assert [seen for seen in snapshots if seen["wrong"]] == []


def test_the_log_went_round_more_than_once(results: tuple[list[Seen], Punched]) -> None:
    assert results[0][-1]["cycle"] > 1
    assert any(seen["frozen"] and seen["cycle"] > 1 for seen in results[0])


def test_every_frozen_snapshot_leaves_something_out(results: tuple[list[Seen], Punched]) -> None:
    frozen = [seen for seen in results[0] if seen["frozen"]]
    assert len(frozen) == FROZEN
    assert all(seen["left_out"] > MIB and not seen["notes"] for seen in frozen)


def test_a_busy_snapshot_says_why_nothing_is_left_out(results: tuple[list[Seen], Punched]) -> None:
    empty = [seen for seen in results[0] if not seen["left_out"]]
    assert empty
    assert all("log" in note for seen in empty for note in seen["notes"])


def test_zeros_in_all_that_is_left_out_damage_nothing(results: tuple[list[Seen], Punched]) -> None:
    """A swap file that was never written to, files in 500 pieces, links, clones, node directories."""
    punched = results[1]
    assert set(punched["kinds"]) == {"swap", "mask", "free"}
    assert punched["kinds"]["swap"] == 16 * MIB - 4096
    assert punched["kinds"]["mask"] == punched["cache"]
    assert punched["fragments"] > 400
    assert punched["damaged"] == []
    assert punched["header"]


def sh(script: str, *arguments: object) -> str:
    return run(["sh", "-ec", script, "sh", *map(str, arguments)])


def clone(source: Path, target: Path) -> Path:
    """An atomic copy: the loop device's writes wait while it is made."""
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new, _CLONE, old.fileno())
    return target


@contextmanager
def mounted(image: Path, place: Path, options: str = "loop,nouuid") -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run(["mount", "-o", options, str(image), str(place)])
    try:
        yield place
    finally:
        run(["umount", str(place)])


def extents(path: Path) -> list[Extent]:
    """Where a file's blocks lie, the kernel says."""
    found: list[Extent] = []
    at, done = 0, False
    with path.open("rb") as handle:
        while not done:
            request = bytearray(struct.pack("=QQIIII", at, (1 << 64) - 1 - at, 0, 0, 256, 0)) + bytes(256 * 56)
            buffer = (ctypes.c_char * len(request)).from_buffer(request)
            fcntl.ioctl(handle, _FIEMAP, buffer)
            count = struct.unpack_from("=I", request, 20)[0]
            done = not count
            for number in range(count):
                logical, physical, length, flags = struct.unpack_from("=QQQ16xI", request, 32 + number * 56)
                at, done = logical + length, bool(flags & _LAST)
                if not flags & _NO_PLACE:
                    found.append(Extent(physical, length))
    return merge(sorted(found, key=lambda item: item.start))


def files(root: Path, *parts: str) -> list[Path]:
    return [path for part in parts for path in sorted((root / part).rglob("*")) if path.is_file()]


class Writer(threading.Thread):
    """Creates, deletes, overwrites and renames between a kept and an excluded directory, until it is told to end."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__()
        self._root = root
        self._dice = random.Random(seed)
        self._seed = seed
        self._ended = threading.Event()
        self.durable = threading.Event()
        self._files: list[Path] = []

    def end(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            act = self._dice.random()
            if len(self._files) < 120 or (act < 0.4 and len(self._files) < 260):
                self._create(f"{self._seed}-{number}")
            elif act < 0.7:
                self._files.pop(self._dice.randrange(len(self._files))).unlink()
            else:
                self._rename(number)

    def _create(self, name: str) -> None:
        path = self._root / self._dice.choice(("kept", "cache")) / name
        with path.open("wb") as handle:
            handle.write(self._dice.randbytes(4096) * self._dice.randrange(1, 160))
            if self.durable.is_set() and self._dice.random() < 0.5:
                # What is in memory only is in no snapshot; this brings changes into the log.
                handle.flush()
                os.fsync(handle.fileno())
        self._files.append(path)

    def _rename(self, number: int) -> None:
        path = self._files.pop(self._dice.randrange(len(self._files)))
        other = self._root / ("cache" if path.parent.name == "kept" else "kept") / f"{self._seed}-r{number}"
        path.rename(other)
        self._files.append(other)


def judged(snapshot: Path, copy: Path, place: Path, *, frozen: bool) -> Seen:
    """Compare what is left out of a snapshot with what the kernel says of it."""
    found = open_xfs(image_of(snapshot)).find(ALL)
    out: list[Extent] = []
    for ranges in found.ranges.values():
        out = unite(out, ranges)
    wrong = 0
    if out:
        clone(snapshot, copy)
        may: list[Extent] = []
        with mounted(copy, place):
            swap = extents(place / "swapfile")
            may = merge(sorted([*clip(swap, swap[0].start + 4096, 1 << 62),
                                *(item for path in files(place, "cache") for item in extents(path))],
                               key=lambda item: item.start))  # fmt: skip
        wrong = total(subtract(out, unite(may, free_blocks(copy))))
    cycle = int(xfs_db(snapshot, "sb 0", "p lsn").split("=")[1], 0) >> 32
    return {"frozen": frozen, "left_out": total(out), "wrong": wrong, "notes": list(found.notes), "cycle": cycle}


def snapshots_of(outer: Path, inner: Path) -> list[Seen]:
    taken: list[tuple[Path, bool]] = []
    with mounted(inner, outer / "live") as root:
        for name in ("kept", "cache"):
            (root / name).mkdir()
        sh(
            'dd if=/dev/zero of="$1" bs=1M count=16 status=none; chmod 600 "$1"; mkswap -q "$1"; sync',
            root / "swapfile",
        )
        writers = [Writer(root, seed) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        try:
            for number in range(LIVE + FROZEN):
                threading.Event().wait(0.3)
                if number == QUIET:
                    for writer in writers:
                        writer.durable.set()
                frozen = number % 3 == 2 and number // 3 < FROZEN
                if frozen:
                    run(["xfs_freeze", "-f", str(root)])
                try:
                    taken.append((clone(inner, outer / f"snapshot-{number}"), frozen))
                finally:
                    if frozen:
                        run(["xfs_freeze", "-u", str(root)])
        finally:
            for writer in writers:
                writer.end()
    return [judged(path, outer / "copy", outer / "truth", frozen=frozen) for path, frozen in taken]


_FILL = """
cd "$1"; mkdir kept cache cache/many
fallocate -l 16M swapfile; chmod 600 swapfile; mkswap -q swapfile
i=0; while [ $i -lt 3000 ]; do echo $i >kept/a-file-with-a-long-name-$i; echo $i >cache/many/a-file-with-a-long-name-$i
i=$((i+1)); done
for name in kept/pieces cache/pieces; do
  dd if=/dev/urandom of=$name bs=4M count=1 status=none
  i=0; while [ $i -lt 1024 ]; do echo "fpunch $((i*4096)) 4096"; i=$((i+2)); done | xfs_io $name >/dev/null
done
dd if=/dev/urandom of=kept/clone bs=1M count=2 status=none; cp --reflink=always kept/clone cache/clone
dd if=/dev/urandom of=kept/link bs=1M count=2 status=none; ln kept/link cache/link
fallocate -l 3M cache/unwritten; sync
"""


def punched(outer: Path, image: Path) -> Punched:
    place = outer / "punched"
    with mounted(image, place) as root:
        sh(_FILL, root)
        alone = [path for path in files(root, "cache") if path.name not in ("clone", "link")]
        cache = sum(total(extents(path)) for path in alone)
        fragments = len(extents(root / "cache/pieces"))
        before = {str(path.relative_to(root)): digest(path) for path in files(root, "kept")}
        header = (root / "swapfile").read_bytes()[:4096]
    found = open_xfs(image_of(image)).find(ALL)
    with image.open("r+b") as handle:
        for item in (item for ranges in found.ranges.values() for item in ranges):
            handle.seek(item.start)
            handle.write(bytes(item.length))
    run(["xfs_repair", "-n", "-f", str(image)])
    with mounted(image, place) as root:
        damaged = [name for name, value in before.items() if digest(root / name) != value]
        same = (root / "swapfile").read_bytes()[:4096] == header
    kinds = {str(kind): total(found.ranges[kind]) for kind in Kind if kind in found.ranges}
    return {"kinds": kinds, "fragments": fragments, "damaged": damaged, "cache": cache, "header": same}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(place: Path) -> None:
    """Print what all snapshots and the punched file system showed; runs in a mount namespace of its own."""
    image = made(place / "outer.img", 6144 * MIB)
    with mounted(image, place / "outer") as outer:
        seen = snapshots_of(outer, made(outer / "inner.img", 400 * MIB, "--unsupported", "-l", "size=8m"))
        lost = punched(outer, made(outer / "punched.img", 400 * MIB))
    print(json.dumps([seen, lost]))


def made(image: Path, size: int, *options: str) -> Path:
    with image.open("xb") as handle:
        handle.truncate(size)
    run(["mkfs.xfs", "-q", *options, str(image)])
    return image


if __name__ == "__main__":
    main(Path(sys.argv[1]))
