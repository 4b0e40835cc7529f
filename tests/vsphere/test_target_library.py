"""Leaves that are written, and points that are read, through real nbdkit and its real plugin with a stand-in library.

The stand-in believes the front alone: which file is whose leaf, which snapshot has which bytes, and who may write.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vsphere.client import Client
from tests.vsphere.front import Front
from tests.vsphere.library.kit import stand_in
from tests.vsphere.steps import AREA, SIZE
from tests.vsphere.target_lab import IDENTITY, POINTS, TargetLab, target_lab
from understudy.errors import UnderstudyError
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.exports import Exports
from understudy.nbd import NbdClient

pytestmark = pytest.mark.timeout(600)

ONE, TWO = POINTS[:2]


@pytest.fixture
def lab(vcenter: Front, client: Client, key: int, library_kit: Path) -> Iterator[TargetLab]:
    with stand_in(library_kit, vcenter.directory) as library, target_lab(vcenter, client, library.library) as made:
        yield made


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    (tmp_path / "run").mkdir(mode=0o700)
    opened = Exports(tmp_path / "run")
    try:
        yield opened
    finally:
        opened.close_all()


@contextmanager
def served(exports: Exports, export: LibraryExport, *, writable: bool = False) -> Iterator[NbdClient]:
    """A disk through the library; it is closed at the end."""
    key, source = exports.open_library(api.OpenLibraryExport(export, "understudy-x", writable=writable))
    try:
        client = NbdClient(source.socket, source.export)
        try:
            yield client
        finally:
            client.close()
    finally:
        exports.close(key)


def content(exports: Exports, export: LibraryExport) -> bytes:
    """All bytes of a disk."""
    with served(exports, export) as client:
        found = bytearray(SIZE)
        for start in range(0, SIZE, AREA):
            client.read(memoryview(found)[start : start + AREA], start)
        return bytes(found)


def write(exports: Exports, lab: TargetLab, seed: int) -> None:
    """Write areas at the leaf as a proxy does."""
    rng = random.Random(seed)
    with served(exports, leaf(lab), writable=True) as client:
        for _ in range(6):
            put(client, rng.randrange(SIZE // AREA) * AREA, rng.randbytes(AREA))


def put(client: NbdClient, offset: int, data: bytes) -> None:
    """Write, and see that it lasts."""
    finish(client, client.start_write(data, offset))
    finish(client, client.start_flush())


def finish(client: NbdClient, cookie: int) -> None:
    """Wait until a write or a flush is complete."""
    while not client.written(cookie):
        client.poll(1.0)


def leaf(lab: TargetLab) -> LibraryExport:
    return lab.host.leaf_export(IDENTITY, lab.hardware.disks[0].name)


def point(lab: TargetLab, name: str) -> LibraryExport:
    return lab.host.point_export(IDENTITY, lab.hardware.disks[0].name, name)


def test_points_stay_as_they_were_while_the_leaf_is_written_and_a_revert_brings_back_each_byte(
    lab: TargetLab, exports: Exports
) -> None:
    lab.make()
    assert content(exports, leaf(lab)) == bytes(SIZE)
    kept = {}
    for seed, name in enumerate((ONE, TWO)):
        write(exports, lab, seed)
        kept[name] = content(exports, leaf(lab))
        lab.take(name)
    write(exports, lab, 7)
    with served(exports, leaf(lab), writable=True) as client:
        put(client, 0, random.Random(8).randbytes(AREA))
        assert {name: content(exports, point(lab, name)) for name in kept} == kept
    assert content(exports, leaf(lab)) not in kept.values()
    lab.revert(ONE)
    assert content(exports, leaf(lab)) == kept[ONE] != kept[TWO]
    lab.revert(TWO)
    assert content(exports, leaf(lab)) == kept[TWO]
    assert lab.remove(ONE) == []
    assert content(exports, point(lab, TWO)) == content(exports, leaf(lab)) == kept[TWO]


def test_what_must_not_be_written_is_refused(lab: TargetLab, exports: Exports) -> None:
    lab.make()
    before = leaf(lab)
    lab.take(ONE)
    with pytest.raises(UnderstudyError), served(exports, before, writable=True):  # the name of a moment ago
        pass
    with pytest.raises(UnderstudyError), served(exports, point(lab, ONE), writable=True):
        pass
    lab.host.start_replica(IDENTITY.domain_uuid)
    with pytest.raises(UnderstudyError), served(exports, leaf(lab), writable=True):
        pass
    lab.host.stop_replica(IDENTITY.domain_uuid)
    with served(exports, leaf(lab), writable=True):
        pass
