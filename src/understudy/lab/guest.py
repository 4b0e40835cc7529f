"""Build the lab guest's disk image: a tiny bootable Linux that is a real guest in all that replication touches.

It has a boot loader, a partition table, a journalled file system, a swap partition and the QEMU guest agent.
The image is built once and kept in a cache directory under a name made from everything that went into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.lab import initramfs, kernel
from understudy.lab.commands import find_program, run
from understudy.lab.errors import LabUnavailable

MIB = 1 << 20
DISK_SIZE = 128 * MIB
DATA_START = 1 * MIB
DATA_SIZE = 111 * MIB
SWAP_START = DATA_START + DATA_SIZE
SWAP_SIZE = DISK_SIZE - SWAP_START

_SECTOR = 512
_LINUX, _LINUX_SWAP = 0x83, 0x82
_MBR_CODE = Path("/usr/lib/EXTLINUX/mbr.bin")
_BOOT_CONFIG = """DEFAULT lab
PROMPT 0
TIMEOUT 0
LABEL lab
  LINUX /boot/vmlinuz
  INITRD /boot/initramfs
  APPEND console=ttyS0 quiet loglevel=4 panic=5 mitigations=off random.trust_cpu=on
"""


@dataclass(frozen=True)
class GuestFiles:
    """A built guest: copy `image` for each VM and never write to it."""

    image: Path
    size: int
    data_start: int
    data_size: int
    swap_start: int
    swap_size: int


def build_guest(cache_dir: Path) -> GuestFiles:
    """Return the guest of this machine's packages, building it when the cache does not have it.

    Two processes may call this at once: one builds, the other waits. A build that dies leaves nothing that a
    later call takes for a guest: the image gets its name only when complete and durable.
    """
    package = kernel.newest_kernel()
    cache_dir.mkdir(parents=True, exist_ok=True)
    image = cache_dir / f"guest-{_inputs_digest(package)}.qcow2"
    with _locked(cache_dir / "guest.lock"):
        if not image.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir) as work_dir:
                _publish(_build(package, Path(work_dir)), image)
    return GuestFiles(image, DISK_SIZE, DATA_START, DATA_SIZE, SWAP_START, SWAP_SIZE)


def _inputs_digest(package: kernel.KernelPackage) -> str:
    """A short digest of the kernel, the programs and our own sources: all that decides what the guest is."""
    digest = hashlib.sha256(f"{package.name} {package.version}\n".encode())
    sources = [Path(source) for source in (__file__, initramfs.__file__, kernel.__file__)]
    for path in (*sources, Path(find_program("busybox")), Path(find_program("qemu-ga"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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


def _build(package: kernel.KernelPackage, work_dir: Path) -> Path:
    """Make the whole disk below work_dir and return the image."""
    files = kernel.unpack_kernel(package, work_dir)
    data, swap, disk = work_dir / "data.ext4", work_dir / "swap", work_dir / "disk.raw"
    boot = work_dir / "root" / "boot"
    boot.mkdir(parents=True)
    files.image.rename(boot / "vmlinuz")
    # Not in memory, where the boot loader would have to bring them each time: few guests have such a disk.
    for number, module in enumerate(files.xfs_modules):
        shutil.copy2(module, boot / f"xfs-{number}.ko")
    initramfs.build_initramfs(files, work_dir, boot / "initramfs")
    (boot / "extlinux.conf").write_text(_BOOT_CONFIG)
    _make_data_partition(data, work_dir / "root", work_dir / "mount")
    _allocate(swap, SWAP_SIZE)
    run(["mkswap", "-q", "-L", initramfs.SWAP_LABEL, str(swap)])
    _assemble(disk, {DATA_START: data, SWAP_START: swap})
    image = work_dir / "guest.qcow2"
    run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(image)])
    image.chmod(0o644)
    return image


# extlinux needs a mounted file system, and reads no file with holes, which `mkfs.ext4 -d` would make. The mount
# lives in a mount namespace of its own, and its loop device frees itself with the mount: however this ends, even by
# kill -9, nothing stays mounted or attached.
_INSTALL_BOOT = 'mount -o loop "$2" "$3" && cp -r --sparse=never "$1/." "$3" && extlinux --install "$3/boot"'


def _make_data_partition(data: Path, root: Path, mount_point: Path) -> None:
    """Make the ext4 file system with the files below root and install the boot loader in it."""
    _allocate(data, DATA_SIZE)
    # The boot loader reads no 64-bit block groups and no metadata checksums.
    features = "^64bit,^metadata_csum"
    run(["mkfs.ext4", "-q", "-b", "4096", "-L", initramfs.DATA_LABEL, "-O", features, str(data)])
    mount_point.mkdir()
    run(["unshare", "--mount", "sh", "-c", _INSTALL_BOOT, "sh", str(root), str(data), str(mount_point)])


def _allocate(path: Path, size: int) -> None:
    with path.open("wb") as handle:
        handle.truncate(size)


def _assemble(disk: Path, partitions: dict[int, Path]) -> None:
    """Write a partition table, the master boot record's code and the partitions into one raw disk."""
    if not _MBR_CODE.exists():
        raise LabUnavailable(str(_MBR_CODE), "no such file", "install the package extlinux")
    _allocate(disk, DISK_SIZE)
    with disk.open("r+b") as handle:
        handle.write(_MBR_CODE.read_bytes()[:440])
        handle.seek(440)
        handle.write(struct.pack("<IH", int.from_bytes(b"USDY", "little"), 0))
        handle.write(_partition_entry(0x80, _LINUX, DATA_START, DATA_SIZE))
        handle.write(_partition_entry(0x00, _LINUX_SWAP, SWAP_START, SWAP_SIZE))
        handle.seek(510)
        handle.write(b"\x55\xaa")
    for start, path in partitions.items():
        run(["dd", f"if={path}", f"of={disk}", "bs=1M", f"seek={start // MIB}", "conv=notrunc,sparse", "status=none"])


def _partition_entry(flags: int, kind: int, start: int, size: int) -> bytes:
    # Cylinder fields of 0xfe 0xff 0xff tell the boot code to use the sector numbers.
    chs = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", flags, chs, kind, chs, start // _SECTOR, size // _SECTOR)
