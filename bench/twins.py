"""Twins: two running lab VMs with equal disks, one for the peer and one for us.

virtnbdbackup 1.9 refuses a VM that has another program's checkpoints, so both cannot track the same VM.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.images import make_image, mostly_random
from bench.settings import Settings
from bench.tools import check_same
from understudy.lab.disks import DataDisk
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.units import KIB

DISK = "vdb"
PIECE = 64 * KIB
CHANGED_SHARE = 0.01
CHANGE_TIMEOUT_S = 600

_CHANGE = """
while read -r number; do
    dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek=$number oflag=direct conv=notrunc 2>/dev/null || exit 1
done </run/places
sync
"""


@dataclass(frozen=True)
class Twins:
    """Two running VMs on the lab's first host."""

    peer: LabVm
    ours: LabVm
    disk_size: int

    def change(self, seed: int) -> None:
        """Overwrite one percent of each data disk, in 64 KiB pieces at random places, the same ones in both."""
        pieces = self.disk_size // PIECE
        chosen = random.Random(seed).sample(range(pieces), max(1, int(pieces * CHANGED_SHARE)))
        places = "".join(f"{number}\n" for number in chosen).encode()
        for vm in (self.peer, self.ours):
            vm.write_file("/run/places", places)
            vm.run(_CHANGE, CHANGE_TIMEOUT_S)


@contextmanager
def running_twins(lab: Lab, place: Path, settings: Settings) -> Iterator[Twins]:
    """Make both VMs, with their disks in memory, and start them."""
    images = place / "images"
    images.mkdir()
    # The lab itself cannot live in /dev/shm, which its hosts replace; disks may lie anywhere.
    (lab.alpha.directory / "images").symlink_to(images)
    disks = [DataDisk(settings.vm_disk)]
    peer, ours = (LabVm.create(lab.alpha, name, lab.guest, data_disks=disks) for name in ("peer", "ours"))
    make_image(data_image(peer), settings.vm_disk, settings.vm_data, mostly_random)
    shutil.copyfile(data_image(peer), data_image(ours))
    for vm in (peer, ours):
        vm.start()
    for vm in (peer, ours):
        vm.wait_agent()
    yield Twins(peer, ours, settings.vm_disk)


def data_image(vm: LabVm) -> Path:
    """The image file of a VM's data disk."""
    return next(disk.path for disk in vm.disks if disk.target == DISK)


def check_copy(vm: LabVm, copy: Path) -> None:
    """Hold a copy of the data disk against the disk itself.

    :raises BenchError: if they differ.
    """
    with vm.domain() as domain:
        # A paused QEMU has drained and flushed its images, so that another process may read them.
        domain.suspend()
        try:
            check_same(data_image(vm), copy)
        finally:
            domain.resume()


def drop_checkpoints(vm: LabVm) -> None:
    """Remove all checkpoints of a VM, whoever made them."""
    with vm.domain() as domain:
        for checkpoint in domain.listAllCheckpoints():
            checkpoint.delete()
