"""A damaged file of an unfinished point costs what it saved, never a wrong byte: the next attempt is the source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mover.mover_lab import io, make_image, run, served, write
from tests.unit.mover.replica_lab import Replica
from tests.unit.mover.wire_lab import BLOCK, BLOCKS, SIZE
from understudy.context import Context
from understudy.model.transfer import TransferMode
from understudy.mover.digest import DigestReader, block_digest
from understudy.units import KIB, MIB


def _unfinished(directory: Path) -> Replica:
    """A replica with one point, a source that changed, and an attempt that came to about half and was kept."""
    lab = Replica(directory, make_image(directory / "disk.qcow2", SIZE))
    write(lab.image, 1, (0, 3 * MIB), (4 * MIB, 300 * KIB), (SIZE - 512, 512))
    first = lab.begin()
    with served(directory, lab.image) as where:
        first.copy(Context(), where)
    first.publish()
    write(lab.image, 2, (0, MIB), (4 * MIB, 64 * KIB))
    io(lab.image, "write -P 0 2M 512K")
    raw = directory / "raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", lab.image, raw)
    content = raw.read_bytes()
    attempt = lab.begin(TransferMode.DIGEST_SCAN, chained=True)
    with DigestReader(lab.copy_of(lab.points[-1])) as base:
        attempt.disk.begin(base)
    for index in (0, 1, 2, 8, 9, 16, BLOCKS - 1):
        block = content[index * BLOCK:(index + 1) * BLOCK]
        if not any(block):
            attempt.disk.zero(index * BLOCK, len(block))
            continue
        attempt.disk.write_at(index * BLOCK, block)
        attempt.disk.put_digests(index, block_digest(memoryview(block)))
        if index == 2:
            attempt.disk.checkpoint()
    attempt.disk.checkpoint()
    attempt.keep()
    # What the unfinished layer has is the source's content no more: zeros over data, data over zeros.
    write(lab.image, 3, (8 * BLOCK, 10 * KIB))
    io(lab.image, f"write -P 0 {BLOCK} {BLOCK}")
    return lab


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return _unfinished(tmp_path_factory.mktemp("unfinished"))


@contextmanager
def _copied(lab: Replica) -> Iterator[Replica]:
    """The same in a directory of its own."""
    place = lab.directory.with_name(f"{lab.directory.name}-copy")
    shutil.copytree(lab.directory, place)
    try:
        yield Replica(place, place / lab.image.name, lab.attempts, lab.moves, list(lab.points))
    finally:
        shutil.rmtree(place)


@settings(max_examples=24)
@given(mode=st.sampled_from([TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN]),
       ending=st.sampled_from([".journal.partial", ".digest.partial", ".qcow2.partial"]), data=st.data())
def test_the_next_attempt_is_the_source_whatever_happened_to_a_file_of_the_one_before(
    unfinished: Replica, mode: TransferMode, ending: str, data: st.DataObject
) -> None:
    with _copied(unfinished) as lab:
        _harm(lab, ending, data)
        _replicate(lab, mode)


def test_a_layer_cut_inside_what_was_complete_is_not_gone_on_with(unfinished: Replica) -> None:
    for clusters in range(3, 25, 3):
        with _copied(unfinished) as lab:
            (path,) = (lab.directory / "ds0").rglob("*.qcow2.partial")
            os.truncate(path, clusters * 64 * KIB)
            _replicate(lab, TransferMode.DIGEST_SCAN)


def _replicate(lab: Replica, mode: TransferMode) -> None:
    attempt = lab.begin(mode, chained=True)
    with served(lab.directory, lab.image, bitmap=lab.bitmap if mode is TransferMode.INCREMENTAL else "") as where:
        attempt.copy(Context(), where)
    attempt.publish()
    lab.check()


def _harm(lab: Replica, ending: str, data: st.DataObject) -> None:
    (path,) = [path for path in (lab.directory / "ds0").rglob("*.partial") if path.name.endswith(ending)]
    content = bytearray(path.read_bytes())
    # Of a layer its length: what is flipped inside it is found by verification, as in a published one.
    acts = ["cut", "longer", "gone"] if ending.startswith(".qcow2") else ["flip", "zeros", "cut", "longer", "gone"]
    act = data.draw(st.sampled_from(acts))
    place = data.draw(st.integers(0, len(content) - 1))
    if act == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif act == "zeros":
        content[place:place + 40] = bytes(len(content[place:place + 40]))
    elif act == "cut":
        del content[place:]
    elif act == "longer":
        content += bytes(1 + place % 5000)
    if act == "gone":
        path.unlink()
    else:
        path.write_bytes(content)
