"""Disk images for lab guests: boot file system, partition table, and the cache that keeps a finished image."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.lab.commands import run
from understudy.lab.errors import LabUnavailable
from understudy.units import MIB

LINUX, LINUX_SWAP = 0x83, 0x82

_SECTOR = 512
_MBR_CODE = Path("/usr/lib/EXTLINUX/mbr.bin")
_BOOT_CONFIG = """DEFAULT lab
PROMPT 0
TIMEOUT 0
LABEL lab
  LINUX /boot/vmlinuz
  INITRD /boot/initramfs
  APPEND {always} {options}
"""
# The kernel's tests of its ciphers are no concern of ours; that of its timer fails on a busy machine without KVM.
_ALWAYS = (
    "console=ttyS0 quiet loglevel=4 panic=5 mitigations=off random.trust_cpu=on no_timer_check cryptomgr.notests"
)
# extlinux needs a mounted file system, and reads no file with holes, which `mkfs.ext4 -d` would make. The mount
# lives in a mount namespace of its own, and its loop device frees itself with the mount: however this ends, even by
# kill -9, nothing stays mounted or attached.
_INSTALL_BOOT = 'mount -o loop "$2" "$3" && cp -r --sparse=never "$1/." "$3" && extlinux --install "$3/boot"'


@dataclass(frozen=True)
class Partition:
    """A partition of a disk and the file with its content; it is as large as that file.

    :ivar start: offset in bytes, a multiple of 1 MiB.
    :ivar kind: its type in the partition table.
    """

    start: int
    content: Path
    kind: int


def cached_image(cache_dir: Path, kind: str, digest: str, build: Callable[[Path], Path]) -> Path:
    """The image `kind-digest` of the cache; if it is not there, `build` makes it in the directory it is given.

    Two processes may call this at once: one builds, the other waits. A build that dies leaves nothing that a later
    call takes for an image: it gets its name only when complete and durable.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    image = cache_dir / f"{kind}-{digest}.qcow2"
    with _locked(cache_dir / f"{kind}.lock"):
        if not image.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir) as work_dir:
                _publish(build(Path(work_dir)), image)
    return image


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _publish(built: Path, image: Path) -> None:
    for path in (built, built.parent):
        _fsync(path)
    built.rename(image)
    _fsync(image.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes that takes no room."""
    with path.open("wb") as handle:
        handle.truncate(size)


def make_boot_partition(target: Path, size: int, label: str, root: Path, options: str = "") -> None:
    """Make an ext4 file system with the files below `root` and a boot loader.

    It starts `boot/vmlinuz` of `root` with `boot/initramfs` and the kernel options given, besides those of every lab
    guest.
    """
    (root / "boot" / "extlinux.conf").write_text(_BOOT_CONFIG.format(always=_ALWAYS, options=options))
    allocate(target, size)
    # The boot loader reads no 64-bit block groups and no metadata checksums.
    features = "^64bit,^metadata_csum"
    run(["mkfs.ext4", "-q", "-b", "4096", "-L", label, "-O", features, str(target)])
    mount_point = target.with_suffix(".mount")
    mount_point.mkdir()
    run(["unshare", "--mount", "sh", "-c", _INSTALL_BOOT, "sh", str(root), str(target), str(mount_point)])


def make_disk(image: Path, size: int, partitions: Sequence[Partition]) -> None:
    """Write a qcow2 image with a partition table, of which the first partition is booted, and the partitions."""
    if not _MBR_CODE.exists():
        raise LabUnavailable(str(_MBR_CODE), "no such file", "install the package extlinux")
    disk = image.with_suffix(".raw")
    allocate(disk, size)
    with disk.open("r+b") as handle:
        handle.write(_MBR_CODE.read_bytes()[:440])
        handle.seek(440)
        handle.write(struct.pack("<IH", int.from_bytes(b"USDY", "little"), 0))
        for number, partition in enumerate(partitions):
            handle.write(_partition_entry(partition, 0x00 if number else 0x80))
        handle.seek(510)
        handle.write(b"\x55\xaa")
    for partition in partitions:
        place = ["bs=1M", f"seek={partition.start // MIB}", "conv=notrunc,sparse", "status=none"]
        run(["dd", f"if={partition.content}", f"of={disk}", *place])
    run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(image)])
    disk.unlink()
    image.chmod(0o644)


def _partition_entry(partition: Partition, flags: int) -> bytes:
    # Cylinder fields of 0xfe 0xff 0xff tell the boot code to use the sector numbers.
    chs = b"\xfe\xff\xff"
    start, count = partition.start // _SECTOR, partition.content.stat().st_size // _SECTOR
    return struct.pack("<B3sB3sII", flags, chs, partition.kind, chs, start, count)
