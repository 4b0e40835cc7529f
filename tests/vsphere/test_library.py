"""Disks served through a vendor's disk library: real nbdkit and its real plugin, with a stand-in for the library."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbd
import pytest

from tests.vsphere.library.kit import PASSWORD, THUMBPRINT, DiskFact, StandIn, build, missing, stand_in
from understudy.errors import (
    HostUnreachable,
    NotFound,
    PlatformError,
    TransferError,
    UnderstudyError,
    UsageError,
)
from understudy.model.access import DiskLibrary
from understudy.model.exclusion import pack
from understudy.model.extent import Extent
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.mover import api
from understudy.mover.exports import EXPORT, Exports
from understudy.mover.library_probe import probe_library
from understudy.mover.reader import Source
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import KIB, MIB

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SECTOR = 512
#: No multiple of a block, of a part or of what the library counts allocation in.
SIZE = 9 * MIB + 37 * SECTOR
DATA = ((0, 64 * KIB), (3 * MIB + 4 * SECTOR, 200 * KIB), (SIZE - 5 * SECTOR, 5 * SECTOR))
PATH, VM, SNAPSHOT = "[ds 1] web/web_1.vmdk", "vm-52", "snapshot-7"


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def library(kit: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A VM with one disk that is off, and a snapshot of it with an older content."""
    live, frozen = tmp_path / "live.raw", tmp_path / "frozen.raw"
    sparse(live, seed=1)
    sparse(frozen, seed=2)
    with stand_in(kit, tmp_path) as made:
        made.serve([DiskFact(VM, PATH, str(live), writable=True), DiskFact(VM, PATH, str(frozen), SNAPSHOT),
                    DiskFact("vm-7", "[ds 1] other/other.vmdk", str(live)),
                    DiskFact("vm-7", "[ds 1] full/full.vmdk", str(live), SNAPSHOT)])  # fmt: skip
        yield made


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    opened = Exports(run_dir)
    try:
        yield opened
    finally:
        opened.close_all()
    assert [path.name for path in run_dir.iterdir()] == []


def sparse(path: Path, seed: int) -> None:
    """A disk with some data, and holes."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, length in DATA:
            file.seek(offset)
            file.write(rng.randbytes(length))


def disk(snapshot: str = SNAPSHOT) -> LibraryDisk:
    return LibraryDisk("disk-0", VM, snapshot, PATH, 2000)


def wish(library: StandIn, snapshot: str = SNAPSHOT, changed: str | None = None) -> api.OpenLibraryExport:
    return api.OpenLibraryExport(LibraryExport(library.login, disk(snapshot), changed), "understudy-x")


def read_all(source: Source) -> bytes:
    content = bytearray(SIZE)
    for start in range(0, SIZE, MIB):
        source.planner.read(memoryview(content)[start : start + MIB], start)
    return bytes(content)


def test_a_disk_of_a_snapshot_is_read_whole_and_identical(
    library: StandIn, exports: Exports, tmp_path: Path
) -> None:  # fmt: skip
    key, where = exports.open_library(wish(library))
    source = Source(where, SIZE)
    try:
        assert read_all(source) == (tmp_path / "frozen.raw").read_bytes()
    finally:
        source.close()
    exports.close(key)
    counts = library.counts()
    assert counts["Open"] == counts["Close"] == counts["Disconnect"] == 2  # one to see whether it can be opened
    for call in library.calls("ConnectEx"):
        assert call.values == {"server": "127.0.0.1", "port": "0", "user": library.login.user, "password": "right",
                               "thumbprint": THUMBPRINT, "vm": f"moref={VM}", "read_only": "1", "snapshot": SNAPSHOT,
                               "transports": "nbdssl"}  # fmt: skip
