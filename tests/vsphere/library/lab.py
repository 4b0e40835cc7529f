"""What the tests of the disk library share: a VM with one sparse disk, its snapshot, and who wants to read it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.vsphere.library.kit import DiskFact, StandIn
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.mover import api
from understudy.units import KIB, MIB

SECTOR = 512
#: No multiple of a block, of a part or of what the library counts allocation in.
SIZE = 9 * MIB + 37 * SECTOR
DATA = ((0, 64 * KIB), (3 * MIB + 4 * SECTOR, 200 * KIB), (SIZE - 5 * SECTOR, 5 * SECTOR))
PATH, VM, SNAPSHOT = "[ds 1] web/web_1.vmdk", "vm-52", "snapshot-7"
#: Of another VM, which runs.
OTHER_PATH, OTHER_VM = "[ds 1] other/other.vmdk", "vm-7"


def sparse(path: Path, seed: int, size: int = SIZE, data: tuple[tuple[int, int], ...] = DATA) -> Path:
    """A flat disk with random data at (offset, length) pairs, and holes."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in data:
            file.seek(offset)
            file.write(rng.randbytes(length))
    return path


def serve_vms(library: StandIn, live: Path, frozen: Path) -> None:
    """A VM that is off, with a snapshot of older content, and another one that runs."""
    library.serve([
        DiskFact(VM, PATH, str(live), writable=True), DiskFact(VM, PATH, str(frozen), SNAPSHOT),
        DiskFact(OTHER_VM, OTHER_PATH, str(live)),
    ])  # fmt: skip


def disk(snapshot: str = SNAPSHOT) -> LibraryDisk:
    """The VM's disk."""
    return LibraryDisk("disk-0", VM, snapshot, PATH, 2000)


def wish(library: StandIn, snapshot: str = SNAPSHOT, changed: str | None = None) -> api.OpenLibraryExport:
    """The request to serve the VM's disk."""
    return api.OpenLibraryExport(LibraryExport(library.login, disk(snapshot), changed), "understudy-x")
