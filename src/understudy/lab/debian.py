"""A Debian guest: systemd, SSH, PostgreSQL and swap, as people run it; for what the tiny guest is too small for.

It is built from this machine's package sources in about a minute, once, and kept in the cache as the tiny guest is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from understudy.lab import debian_tree, image, initramfs, kernel
from understudy.lab.commands import run
from understudy.lab.guest import GuestFiles
from understudy.lab.image import LINUX, LINUX_SWAP, Partition
from understudy.units import MIB

# Where programs lie at random addresses QEMU translates their code anew at each start: seven times the work for `true`.
_KERNEL_OPTIONS = "net.ifnames=0 norandmaps"

SWAP_UUID = "5a5a5a5a-7573-6479-8000-000000000001"
MEMORY_MIB = 320

_ROOT_LABEL = "debian-root"
BOOT_START, BOOT_SIZE = 1 * MIB, 31 * MIB
_ROOT_START, _ROOT_SIZE = BOOT_START + BOOT_SIZE, 512 * MIB
_SWAP_START, _SWAP_SIZE = _ROOT_START + _ROOT_SIZE, 96 * MIB
_DISK_SIZE = _SWAP_START + _SWAP_SIZE


def build_debian(cache_dir: Path) -> GuestFiles:
    """Return the Debian guest, building it when the cache does not have it; its data partition is the root.

    Its swap partition is full of what could not be compressed, as if the guest had swapped; `/etc/fstab` names it by
    its UUID.
    """
    package = kernel.newest_kernel()
    built = image.cached_image(
        cache_dir, "debian", _inputs_digest(package), lambda work_dir: _build(package, work_dir)
    )
    return GuestFiles(built, _DISK_SIZE, _ROOT_START, _ROOT_SIZE, _SWAP_START, _SWAP_SIZE)


def _inputs_digest(package: kernel.KernelPackage) -> str:
    """All that decides what the guest is, but for updates of single packages: those make no other guest for a test."""
    digest = hashlib.sha256(f"{package.name} {package.version}\n".encode())
    for module in (__file__, debian_tree.__file__, image.__file__, initramfs.__file__, kernel.__file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:16]


def _build(package: kernel.KernelPackage, work_dir: Path) -> Path:
    files = kernel.unpack_kernel(package, work_dir)
    boot, root, swap, built = (work_dir / name for name in ("boot.ext4", "root.ext4", "swap", "debian.qcow2"))
    boot_files = work_dir / "boot" / "boot"
    boot_files.mkdir(parents=True)
    files.image.rename(boot_files / "vmlinuz")
    initramfs.build_boot_initramfs(files, _ROOT_LABEL, work_dir, boot_files / "initramfs")
    image.make_boot_partition(boot, BOOT_SIZE, "debian-boot", boot_files.parent, _KERNEL_OPTIONS)
    image.allocate(root, _ROOT_SIZE)
    debian_tree.build_root(root, _ROOT_LABEL, SWAP_UUID, work_dir)
    swap.write_bytes(os.urandom(_SWAP_SIZE))
    run(["mkswap", "-q", "-U", SWAP_UUID, str(swap)])
    image.make_disk(
        built, _DISK_SIZE,
        [Partition(BOOT_START, boot, LINUX), Partition(_ROOT_START, root, LINUX),
         Partition(_SWAP_START, swap, LINUX_SWAP)],
    )  # fmt: skip
    return built
