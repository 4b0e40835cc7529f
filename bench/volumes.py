"""Volumes: file systems with very many files, made by their own tools and filled by their own drivers.

Of NTFS more is left out if Windows runs from it. So it gets a registry, and lies in the partition that this one names.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.tools import Word, run
from tests.unit.volumes.hives import hive
from understudy.units import GIB, KIB, MIB

#: Mounts, and whatever serves them, end with whoever made them.
_ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_MOUNTED = """
mount -t {driver} -o loop {image} {at} && {{ {python} -c "$0" "$@"; state=$?; umount {at} && exit $state; }}
"""
#: Arguments: the mounted volume, how many files to make, how many of them to remove, the longest one, the swap file;
#: and a registry if Windows is to run from it.
#: Their space is allocated as if it had been written; what was removed leaves holes all over the volume.
_FILL = """
import os, random, shutil, subprocess, sys
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
for registry in sys.argv[6:]:
    os.makedirs(f"{top}/Windows/System32/config")
    shutil.copy(registry, f"{top}/Windows/System32/config/SYSTEM")
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


#: A disk of Windows: the signature of its table of partitions, and where the only one begins.
_SIGNATURE, _BEGIN = b"NTFS", MIB


def make_volume(image: Path, kind: Kind, files: int, longest: int, *, holes: bool) -> int:
    """Make a qcow2 image of a volume with so many files, one half below ``cache``, and a swap file; the image's size.

    :param longest: of the files, which are of all lengths, in bytes.
    :param holes: as many files again by half were removed from all over it.
    """
    removed = files // 2 if holes else 0
    size = GIB + (files + removed) * (longest + KIB)
    raw, at, registry = (image.with_suffix(suffix) for suffix in (".raw", ".mounted", ".registry"))
    at.mkdir()
    registry.write_bytes(hive({"MountedDevices": {"\\DosDevices\\C:": _SIGNATURE + struct.pack("<Q", _BEGIN)}}))
    with raw.open("wb") as file:
        file.truncate(size)
    try:
        inodes = ("-N", str(files + removed + 10_000)) if kind is EXT4 else ()
        run(*kind.make, *inodes, raw)
        script = _MOUNTED.format(driver=kind.driver, image=raw, at=at, python=sys.executable)
        filling: tuple[Word, ...] = (_FILL, at, str(files + removed), str(removed), str(longest), kind.swap_file)
        run(*_ISOLATED, "sh", "-c", script, *filling, *([registry] if kind is NTFS else []))
        if kind is NTFS:
            return _make_disk(image, raw, size)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    finally:
        raw.unlink()
        registry.unlink()
        at.rmdir()
    return size


def _make_disk(image: Path, volume: Path, size: int) -> int:
    """Make a qcow2 image of a disk with a volume in its only partition; the disk's size."""
    table = volume.with_suffix(".table")
    entry = struct.pack("<B3xB3xII", 0, 7, _BEGIN // 512, size // 512)
    table.write_bytes((bytes(440) + _SIGNATURE + bytes(2) + entry).ljust(510, b"\0") + b"\x55\xaa")
    try:
        run("qemu-img", "create", "-q", "-f", "qcow2", image, str(_BEGIN + size))
        for offset, length, source in ((0, 512, table), (_BEGIN, size, volume)):
            part = f"driver=raw,offset={offset},size={length},file.driver=qcow2,file.file.driver=file"
            run("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", source, "--target-image-opts",
                f"{part},file.file.filename={image}")  # fmt: skip
    finally:
        table.unlink()
    return _BEGIN + size
