"""Of crash-consistent snapshots of a busy ext volume, nothing that the guest keeps is ever left out.

The volume lies in a file on XFS, whose reflinks copy it in an instant while it is written to. What the kernel makes of
a copy when it mounts it is the truth. Everything runs in name spaces of its own and ends with them.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from understudy.lab.commands import run
from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, merge, subtract, total, unite
from understudy.units import KIB, MIB
from understudy.volumes import Unfit, Wishes
from understudy.volumes.ext import open_ext
from understudy.volumes.masks import Masks

SIZE = 96 * MIB
SNAPSHOTS = 10
_FIEMAP, _EXTENTS = 0xC020660B, 500
_FREE = re.compile(r"^  Free blocks: (.*)$", re.MULTILINE)
_SUPERBLOCK_INCOMPAT, _RECOVER = 1024 + 0x60, 0x4
_ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.mark.parametrize(("options", "mounted"), [
    (["-t", "ext4", "-b", "4096"], "commit=1"),
    (["-t", "ext4", "-b", "1024"], "commit=1"),
    (["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit,uninit_bg"], "commit=1,journal_checksum"),
    (["-t", "ext3", "-b", "1024"], "commit=1"),
], ids=["sums-v3", "blocks-of-1k", "old-sums", "ext3"])  # fmt: skip
def test_no_kept_byte_of_a_busy_volume_is_left_out(tmp_path: Path, options: list[str], mounted: str) -> None:
    command = [*_ISOLATED, sys.executable, "-m", __name__, "watch", str(tmp_path), mounted, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    snapshots = json.loads(done.stdout)
    assert len(snapshots) == SNAPSHOTS
    assert [item["harmed"] for item in snapshots] == [0] * SNAPSHOTS
    assert all(item["needs_replay"] for item in snapshots)
    assert sum(item["mask"] > MIB for item in snapshots) > SNAPSHOTS // 2
    assert sum(item["free"] > MIB for item in snapshots) > SNAPSHOTS // 2
    assert [item["missed"] for item in snapshots] == [0] * SNAPSHOTS


@dataclass(frozen=True)
class _File:
    """An image in a file."""

    path: Path

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """As the protocol says."""
        with self.path.open("rb") as handle:
            data = os.pread(handle.fileno(), length, offset)
        if len(data) != length:
            raise Unfit("outside")
        return data


def _watch(place: Path, mounted: str, options: list[str]) -> None:
    """Mount, write, take the snapshots and print what the reader made of them."""
    host, volume = place / "host", place / "volume"
    for directory in (host, volume):
        directory.mkdir()
    _allocate(place / "host.xfs", 2048 * MIB)
    run(["mkfs.xfs", "-q", "-m", "reflink=1", str(place / "host.xfs")])
    run(["mount", "-o", "loop", str(place / "host.xfs"), str(host)])
    image = host / "volume.img"
    _allocate(image, SIZE)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    run(["mkfs.ext4", "-q", "-J", "size=4", "-m", "0", "-E", lazy, *options, str(image)])
    run(["mount", "-o", f"loop,{mounted}", str(image), str(volume)])
    for name in ("keep", "skip"):
        (volume / name).mkdir()
    writer = subprocess.Popen([sys.executable, "-m", "tests.system.test_ext_crash", "write", str(volume)])
    snapshots = []
    try:
        time.sleep(2)
        for number in range(SNAPSHOTS):
            time.sleep(0.35)
            snapshot = host / f"snapshot-{number}.img"
            run(["cp", "--reflink=always", str(image), str(snapshot)])
            assert writer.poll() is None
            snapshots.append(snapshot)
    finally:
        writer.kill()
        writer.wait()
    run(["umount", str(volume)])
    print(json.dumps([_judge(snapshot, volume) for snapshot in snapshots]))


def _judge(snapshot: Path, mount_point: Path) -> dict[str, int]:
    """Compare the reader's ranges with what the kernel makes of the snapshot.

    ``harmed`` are bytes left out that the kernel has in use for anything but files of the mask, ``missed`` are bytes of
    such files that were not left out.
    """
    found = open_ext(_File(snapshot)).find(Wishes(masks=Masks(["/skip/**"]), free=True)).ranges
    incompat = struct.unpack("<I", _File(snapshot).read(_SUPERBLOCK_INCOMPAT, 4))[0]
    run(["mount", "-o", "loop", str(snapshot), str(mount_point)])
    try:
        masked = _places(mount_point / "skip")
    finally:
        run(["umount", str(mount_point)])
    used = subtract([Extent(0, SIZE)], _free(snapshot))
    left_out = unite(found.get(Kind.MASK, ()), found.get(Kind.FREE, ()))
    return {
        "mask": total(found.get(Kind.MASK, ())),
        "free": total(found.get(Kind.FREE, ())),
        "harmed": total(intersect(left_out, subtract(used, masked))),
        "missed": total(subtract(masked, found.get(Kind.MASK, ()))),
        "needs_replay": incompat & _RECOVER,
    }


def _places(directory: Path) -> list[Extent]:
    """Where the files below a directory lie, by the kernel's word; files with several names are left out."""
    if not directory.exists():
        return []
    found = [
        item for path in directory.rglob("*") if path.is_file() and path.stat().st_nlink == 1 for item in _fiemap(path)
    ]
    return merge(sorted(found, key=lambda item: item.start))


def _fiemap(path: Path) -> Iterator[Extent]:
    start = 0
    with path.open("rb") as handle:
        while True:
            head = struct.pack("<QQIIII", start, (1 << 64) - 1 - start, 0, 0, _EXTENTS, 0)
            request = bytearray(head + bytes(56 * _EXTENTS))
            fcntl.ioctl(handle, _FIEMAP, request)
            count = struct.unpack_from("<I", request, 20)[0]
            for index in range(count):
                logical, physical, length = struct.unpack_from("<QQQ", request, 32 + 56 * index)
                flags = struct.unpack_from("<I", request, 32 + 56 * index + 40)[0]
                start = logical + length
                yield Extent(physical, length)
                if flags & 1:
                    return
            if not count:
                return


def _free(image: Path) -> list[Extent]:
    """The free blocks of an unmounted file system, by dumpe2fs."""
    text = run(["dumpe2fs", str(image)])
    size = int(re.findall(r"^Block size: +(\d+)", text, re.MULTILINE)[0])
    found = []
    for line in _FREE.findall(text):
        for piece in filter(None, line.split(", ")):
            first, _, last = piece.partition("-")
            found.append(Extent(int(first) * size, (int(last or first) - int(first) + 1) * size))
    return merge(sorted(found, key=lambda item: item.start))


def _allocate(path: Path, size: int) -> None:
    with path.open("xb") as handle:
        handle.truncate(size)


def _write(volume: Path) -> None:
    """Create, grow, delete, link and rename between both folders, until killed."""
    chance = random.Random(7)
    files: list[Path] = []
    number = 0
    content = chance.randbytes(512 * KIB)
    while True:
        number += 1
        free = os.statvfs(volume)
        full = free.f_bavail < free.f_blocks // 6
        if files and (full or chance.random() < 0.3):
            files.pop(chance.randrange(len(files))).unlink()
        elif files and chance.random() < 0.4:
            old = files.pop(chance.randrange(len(files)))
            files.append(_renamed(volume, old, number))
        else:
            files.append(_created(volume, number, content[: chance.randrange(1, 96) * 4 * KIB - 100], chance))
        if number % 25 == 0:
            _folder(volume, number)


def _renamed(volume: Path, old: Path, number: int) -> Path:
    new = volume / ("keep" if old.parent.name == "skip" else "skip") / f"moved-{number}"
    old.rename(new)
    return new


def _created(volume: Path, number: int, content: bytes, chance: random.Random) -> Path:
    path = volume / chance.choice(["keep", "skip"]) / f"file-{number}"
    with path.open("wb") as handle:
        handle.write(content)
        # Blocks of a file that begin like those of a journal have to be marked there; directories never do.
        if chance.random() < 0.2:
            handle.seek(chance.randrange(1, 4) * MIB)
            handle.write(b"behind a hole")
        if chance.random() < 0.1:
            os.fsync(handle.fileno())
    return path


def _folder(volume: Path, number: int) -> None:
    """A folder that lives shortly: its block is revoked in the journal and soon belongs to a file."""
    folder = volume / f"folder-{number}"
    folder.mkdir()
    (folder / "file").write_bytes(b"short")
    (folder / "file").unlink()
    folder.rmdir()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        _write(Path(sys.argv[2]))
    else:
        _watch(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
