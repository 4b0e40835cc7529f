"""Populated XFS images, made without root; and what ``xfs_db`` says of them."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from understudy.model.extent import Extent, merge
from understudy.volumes import Unfit

MIB = 1 << 20


@dataclass(frozen=True)
class FileImage:
    """An :class:`understudy.volumes.Image` of a file, which may have been changed in memory."""

    path: Path
    changed: Mapping[int, bytes]

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Unfit(f"{length} bytes at {offset} are not in the image")
        with self.path.open("rb") as handle:
            handle.seek(offset)
            data = bytearray(handle.read(length))
        for place, new in self.changed.items():
            for at, byte in enumerate(new, place):
                if offset <= at < offset + length:
                    data[at - offset] = byte
        return bytes(data)


def image_of(path: Path) -> FileImage:
    return FileImage(path, {})


def swap_bytes(size: int, *, signature: bytes = b"SWAPSPACE2", version: int = 1, pages: int | None = None) -> bytes:
    """What ``mkswap`` leaves in a file; the rest is old memory."""
    last = size // 4096 - 1 if pages is None else pages
    head = (bytes(1024) + struct.pack("<II", version, last)).ljust(4096 - len(signature), b"\0") + signature
    return head + b"\xa5" * (size - 4096)


def make(place: Path, tree: Mapping[str, bytes], *options: str, size: int = 300 * MIB) -> Path:
    """An image with files of these contents, by path from the root; the directories are made on the way."""
    (place / "src").mkdir()
    nested: dict[str, object] = {}
    for number, (path, data) in enumerate(tree.items()):
        source = place / "src" / str(number)
        source.write_bytes(data)
        *parents, name = path.strip("/").split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})  # type: ignore[assignment]
        level[name] = source
    prototype = place / "proto"
    prototype.write_text("/dev/null\n0 0\nd--755 0 0\n" + "\n".join(_lines(nested)) + "\n$\n")
    image = place / "xfs.img"
    with image.open("wb") as handle:
        handle.truncate(size)
    subprocess.run(["mkfs.xfs", "-q", "-L", "lab", "-p", prototype, *options, image], check=True, capture_output=True)
    return image


def _lines(level: Mapping[str, object]) -> list[str]:
    found: list[str] = []
    for name, item in level.items():
        if isinstance(item, Path):
            found.append(f"{name} ---644 0 0 {item}")
        else:
            found += [f"{name} d--755 0 0", *_lines(item), "$"]  # type: ignore[arg-type]
    return found


def xfs_db(image: Path, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    return subprocess.run(["xfs_db", "-r", "-f", *arguments, image], check=True, capture_output=True, text=True).stdout


def superblock(image: Path) -> dict[str, int]:
    fields = re.findall(r"^(\w+) = (\d+)$", xfs_db(image, "sb 0", "p"), re.MULTILINE)
    return {name: int(number) for name, number in fields}


def blocks_of(image: Path, path: str) -> list[Extent]:
    """The bytes of a file as ``xfs_db`` sees them."""
    sb = superblock(image)
    found = []
    for agno, agbno, count in re.findall(r"startblock \d+ \((\d+)/(\d+)\) count (\d+)",
                                         xfs_db(image, f"path {path}", "bmap")):  # fmt: skip
        start = (int(agno) * sb["agblocks"] + int(agbno)) * sb["blocksize"]
        found.append(Extent(start, int(count) * sb["blocksize"]))
    return merge(sorted(found, key=lambda item: item.start))


def free_blocks(image: Path) -> list[Extent]:
    """The free bytes of all groups as ``xfs_db`` sees them; it counts the reserve (AGFL) too."""
    sb = superblock(image)
    found = []
    for agno, agbno, count in re.findall(r"^ *(\d+) +(\d+) +(\d+)$", xfs_db(image, "freesp -d"), re.MULTILINE):
        start = (int(agno) * sb["agblocks"] + int(agbno)) * sb["blocksize"]
        found.append(Extent(start, int(count) * sb["blocksize"]))
    return sorted(found, key=lambda item: item.start)
