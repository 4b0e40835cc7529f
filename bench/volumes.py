"""Volumes: file systems with very many files, made by their own tools and filled by their own drivers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.tools import Word, run
from understudy.units import GIB, KIB

#: Mounts, and whatever serves them, end with whoever made them.
_ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_MOUNTED = """
mount -t {driver} -o loop {image} {at} && {{ {python} -c "$0" "$@"; state=$?; umount {at} && exit $state; }}
"""
#: Arguments: the mounted volume, how many files to make, how many of them to remove, the longest one, the swap file.
#: Their space is allocated as if it had been written; what was removed leaves holes all over the volume.
_FILL = """
import os, random, subprocess, sys
top, swap = sys.argv[1], sys.argv[5]
made, removed, longest = map(int, sys.argv[2:5])
chance = random.Random(7)
def directory(number):
    group = number // 250
    return f"{top}/{'cache' if group % 2 else 'kept'}/projects/a directory, the {group}th"
def allocate(path, length):
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.posix_fallocate(file, 0, length)
    os.close(file)
for number in range(made):
    if number % 250 == 0:
        os.makedirs(directory(number))
    allocate(f"{directory(number)}/file number {number}.bin", chance.randint(1, longest))
for number in chance.sample(range(made), removed):
    os.unlink(f"{directory(number)}/file number {number}.bin")
allocate(f"{top}/{swap}", 16 << 20)
subprocess.run(["mkswap", "-q", f"{top}/{swap}"], check=True)
os.mkdir(f"{top}/etc")
with open(f"{top}/etc/fstab", "w") as table:
    table.write("/dev/vda / auto defaults 0 1\\n")
"""


@dataclass(frozen=True)
class Kind:
    """A kind of file system.

    :ivar driver: what mounts it.
    :ivar make: the command that makes it, but for the image.
    :ivar root: how masks for it begin.
    """

    name: str
    driver: str
    make: tuple[str, ...]
    swap_file: str = "swapfile"
    root: str = "/"

    def masks(self, *names: str) -> tuple[str, ...]:
        """Masks below the root, whose names are divided as this kind does it."""
        return tuple(self.root + name.replace("/", self.root) for name in names)


#: Nothing may be left to be initialised while the volume is in use.
EXT4 = Kind("ext4", "ext4", ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"))
XFS = Kind("xfs", "xfs", ("mkfs.xfs", "-q"))
NTFS = Kind("ntfs", "ntfs-3g", ("mkntfs", "-q", "-F", "-f"), "pagefile.sys", "\\")


def make_volume(image: Path, kind: Kind, files: int, longest: int, *, holes: bool) -> int:
    """Make a qcow2 image of a volume with so many files, one half below ``cache``, and a swap file; its size.

    :param longest: of the files, which are of all lengths, in bytes.
    :param holes: as many files again by half were removed from all over it.
    """
    removed = files // 2 if holes else 0
    size = GIB + (files + removed) * (longest + KIB)
    raw, at = image.with_suffix(".raw"), image.with_suffix(".mounted")
    at.mkdir()
    with raw.open("wb") as file:
        file.truncate(size)
    try:
        inodes = ("-N", str(files + removed + 10_000)) if kind is EXT4 else ()
        run(*kind.make, *inodes, raw)
        script = _MOUNTED.format(driver=kind.driver, image=raw, at=at, python=sys.executable)
        filling: tuple[Word, ...] = (_FILL, at, str(files + removed), str(removed), str(longest), kind.swap_file)
        run(*_ISOLATED, "sh", "-c", script, *filling)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    finally:
        raw.unlink()
        at.rmdir()
    return size
