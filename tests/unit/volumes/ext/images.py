"""Images: ext file systems made without root, and what e2fsprogs say of them."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from understudy.model.extent import Extent, merge
from understudy.units import KIB, MIB
from understudy.volumes import Unfit

PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass
class FileImage:
    """An image in a file; ``reads`` counts what was asked for."""

    path: Path
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        with self.path.open("rb") as handle:
            data = os.pread(handle.fileno(), length, offset) if offset >= 0 else b""
        if len(data) != length:
            raise Unfit("outside of the image")
        return data


class MemoryImage:
    """An image in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise Unfit("outside of the image")
        return bytes(self.data[offset : offset + length])


def run(*command: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    """What a program of e2fsprogs prints."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=PATH, timeout=120)
    assert done.returncode in allowed, done.stdout + done.stderr
    return done.stdout


def make_tree(place: Path, files: int = 120) -> Path:
    """Files to keep and to leave out: small ones, one with holes, one with two names, one behind a link, and swap."""
    chance = random.Random(1)
    tree = place / "tree"
    for name in ("keep/deep/er", "skip/deep/er", "var", "etc"):
        (tree / name).mkdir(parents=True)
    for number in range(files):
        for name in ("keep", "skip", "skip/deep/er"):
            (tree / name / f"a file with quite a long name, number {number}").write_bytes(
                chance.randbytes(chance.randrange(20_000))
            )
    with (tree / "skip/holes").open("wb") as handle:
        for offset in (0, 100 * KIB, 5 * MIB + 1):
            handle.seek(offset)
            handle.write(chance.randbytes(9000))
        handle.truncate(9 * MIB)
    (tree / "skip/twice").write_bytes(chance.randbytes(50_000))
    (tree / "keep/twice").hardlink_to(tree / "skip/twice")
    (tree / "skip/link").symlink_to("../keep/" + "x" * 100)
    (tree / "etc/fstab").write_text("UUID=1 / ext4 defaults 0 1\n")
    (tree / "swapfile").write_bytes(swap_content(4 * MIB))
    return tree


def swap_content(size: int, mark: bytes = b"SWAPSPACE2", version: int = 1, page: int = 4 * KIB) -> bytes:
    """A swap file that has been used everywhere."""
    content = bytearray(b"\xaa" * size)
    content[1024:1036] = struct.pack("<III", version, size // page - 1, 0)
    content[page - len(mark) : page] = mark
    return bytes(content)


def make_image(place: Path, tree: Path, *options: str, size: int = 64 * MIB) -> Path:
    """A file system with what is below ``tree``."""
    image = place / "image.ext"
    with image.open("wb") as handle:
        handle.truncate(size)
    run("mke2fs", "-q", "-F", "-m", "0", "-d", tree, *options, image)
    return image


def debugfs(image: Path, *requests: str, write: bool = False) -> str:
    """What debugfs prints for some requests."""
    flags = ["-w"] if write else []
    done = subprocess.run(
        ["debugfs", *flags, "-f", "-", str(image)], input="\n".join(requests) + "\n", capture_output=True, text=True,
        check=False, env=PATH, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def block_size(image: Path) -> int:
    """In bytes."""
    return int(re.findall(r"^Block size: +(\d+)", run("dumpe2fs", "-h", image), re.MULTILINE)[0])


def places(image: Path, *paths: str) -> list[Extent]:
    """Where the data of files lies, by debugfs: without the blocks of their maps."""
    size = block_size(image)
    found = []
    for text in debugfs(image, *(f'stat "{path}"' for path in paths)).split("debugfs: ")[1:]:
        lists = re.findall(r"^(?:EXTENTS|BLOCKS):\n(.*)$", text, re.MULTILINE)
        for piece in lists[0].split(", ") if lists else ():
            match = re.fullmatch(r"\(\d+(?:-\d+)?(?:\[u\])?\):(\d+)(?:-(\d+))?", piece.strip())
            if match:
                first, last = int(match[1]), int(match[2] or match[1])
                found.append(Extent(first * size, (last - first + 1) * size))
    return merge(sorted(found, key=lambda item: item.start))


def free(image: Path) -> list[Extent]:
    """The free blocks, by dumpe2fs, without those of groups whose bitmap was never written."""
    size = block_size(image)
    found = []
    for group in run("dumpe2fs", image).split("\nGroup ")[1:]:
        lists = re.findall(r"^  Free blocks: (.*)$", group, re.MULTILINE)
        if "BLOCK_UNINIT" in group or not lists:
            continue
        for piece in filter(None, lists[0].split(", ")):
            first, _, last = piece.partition("-")
            found.append(Extent(int(first) * size, (int(last or first) - int(first) + 1) * size))
    return merge(sorted(found, key=lambda item: item.start))
