"""Build the lab guest's disk image: a tiny bootable Linux that is a real guest in all that replication touches.

It has a boot loader, a partition table, a journalled file system, a swap partition and the QEMU guest agent.
The image is built once and kept in a cache directory under a name made from everything that went into it.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from understudy.lab import image, initramfs, kernel
from understudy.lab.commands import find_program, run
from understudy.lab.image import LINUX, LINUX_SWAP, Partition

MIB = 1 << 20
DISK_SIZE = 128 * MIB
DATA_START = 1 * MIB
DATA_SIZE = 111 * MIB
SWAP_START = DATA_START + DATA_SIZE
SWAP_SIZE = DISK_SIZE - SWAP_START


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
    """Return the guest of this machine's packages, building it when the cache does not have it."""
    package = kernel.newest_kernel()
    built = image.cached_image(
        cache_dir, "guest", _inputs_digest(package), lambda work_dir: _build(package, work_dir)
    )
    return GuestFiles(built, DISK_SIZE, DATA_START, DATA_SIZE, SWAP_START, SWAP_SIZE)


def _inputs_digest(package: kernel.KernelPackage) -> str:
    """A short digest of the kernel, the programs and our own sources: all that decides what the guest is."""
    digest = hashlib.sha256(f"{package.name} {package.version}\n".encode())
    sources = [Path(source) for source in (__file__, image.__file__, initramfs.__file__, kernel.__file__)]
    for path in (*sources, Path(find_program("busybox")), Path(find_program("qemu-ga"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(package: kernel.KernelPackage, work_dir: Path) -> Path:
    """Make the whole disk below work_dir and return the image."""
    files = kernel.unpack_kernel(package, work_dir)
    data, swap, built = work_dir / "data.ext4", work_dir / "swap", work_dir / "guest.qcow2"
    boot = work_dir / "root" / "boot"
    boot.mkdir(parents=True)
    files.image.rename(boot / "vmlinuz")
    # Not in memory, where the boot loader would have to bring them each time: few guests have such a disk.
    for number, module in enumerate(files.xfs_modules):
        shutil.copy2(module, boot / f"xfs-{number}.ko")
    initramfs.build_initramfs(files, work_dir, boot / "initramfs")
    image.make_boot_partition(data, DATA_SIZE, initramfs.DATA_LABEL, work_dir / "root")
    image.allocate(swap, SWAP_SIZE)
    run(["mkswap", "-q", "-L", initramfs.SWAP_LABEL, str(swap)])
    image.make_disk(built, DISK_SIZE, [Partition(DATA_START, data, LINUX), Partition(SWAP_START, swap, LINUX_SWAP)])
    return built
