"""Make the disks of a lab guest: the system disk from the guest image, data disks empty or with a file system."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

from understudy.lab.commands import run
from understudy.lab.domain_xml import VmDisk
from understudy.lab.errors import LabError
from understudy.lab.guest import GuestFiles


@dataclass(frozen=True)
class DataDisk:
    """A further disk: its size, image format (qcow2 or raw), and what is on it: nothing, ext4, or a raw image.

    A disk that is one ext4 or XFS file system is mounted at /mnt/vdb, /mnt/vdc, ... when the guest starts.

    :ivar ext4_label: label of the ext4 file system that it gets.
    :ivar content: a raw image of ``size`` bytes with which it begins.
    """

    size: int
    format: str = "qcow2"
    ext4_label: str | None = None
    content: Path | None = None


def make_disks(directory: Path, guest: GuestFiles, data_disks: Sequence[DataDisk], *, overlay: bool) -> list[VmDisk]:
    """Create all disks of one guest in the new `directory`; the first is the system disk."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError as exc:
        why = f"this lab host has, or had, a VM '{directory.name}', whose disks are still there"
        raise LabError(f"make disks in {directory}", why, "choose another name, or remove that VM first") from exc
    try:
        disks = [VmDisk("vda", _make_system_disk(directory, guest, overlay=overlay), "qcow2")]
        for letter, disk in zip(ascii_lowercase[1:], data_disks, strict=False):
            target = f"vd{letter}"
            disks.append(VmDisk(target, _make_data_disk(directory / f"{target}.{disk.format}", disk), disk.format))
    except OSError as exc:
        raise LabError(f"make disks in {directory}", f"{exc.filename}: {exc.strerror}") from exc
    return disks


def _make_system_disk(directory: Path, guest: GuestFiles, *, overlay: bool) -> Path:
    system = directory / "vda.qcow2"
    if overlay:
        # A copy beside it, because the QEMU user may not be able to reach the cache.
        base = directory / "base.qcow2"
        shutil.copyfile(guest.image, base)
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(system)])
    else:
        shutil.copyfile(guest.image, system)
    return system


def _make_data_disk(path: Path, disk: DataDisk) -> Path:
    if disk.content is not None:
        run(["qemu-img", "convert", "-f", "raw", "-O", disk.format, str(disk.content), str(path)])
        return path
    if disk.ext4_label is None:
        run(["qemu-img", "create", "-q", "-f", disk.format, str(path), str(disk.size)])
        return path
    raw = path.with_suffix(".new")
    with raw.open("wb") as handle:
        handle.truncate(disk.size)
    run(["mkfs.ext4", "-q", "-L", disk.ext4_label, str(raw)])
    run(["qemu-img", "convert", "-O", disk.format, str(raw), str(path)])
    raw.unlink()
    return path
