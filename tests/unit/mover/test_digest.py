"""Digest files: what was written is read; a damaged file is an error, never another answer."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.storage.power import Power, PowerCut
from understudy.errors import ReplicaError, UsageError
from understudy.model.extent import Extent
from understudy.mover.base import PointDigests
from understudy.mover.digest import (
    DIGEST_BYTES,
    HEADER_BYTES,
    ZERO_DIGEST,
    DigestHeader,
    DigestReader,
    DigestWriter,
    copy_digests,
)
from understudy.units import MIB

HEADER = DigestHeader("p1", 9000 * MIB + 512, MIB)


def make(path: Path, header: DigestHeader = HEADER, blocks: tuple[int, ...] = (0, 5, 5000, 9000)) -> Path:
    """A finished digest file with digests for ``blocks``."""
    with DigestWriter(path, header) as writer:
        for block in blocks:
            writer.put(block, bytes([1 + block % 255]) * DIGEST_BYTES)
        writer.finish()
    return path


def test_digests_come_back(tmp_path: Path) -> None:
    with DigestReader(make(tmp_path / "d")) as reader:
        assert (reader.header.point, reader.header.size, reader.header.blocks) == ("p1", HEADER.size, 9001)
        assert reader.read(5, 2) == b"\x06" * DIGEST_BYTES + ZERO_DIGEST
        assert reader.read(9000, 1) != ZERO_DIGEST
        with pytest.raises(ReplicaError):
            reader.read(9000, 2)


def test_a_writer_refuses_blocks_that_do_not_exist(tmp_path: Path) -> None:
    with DigestWriter(tmp_path / "d", HEADER) as writer, pytest.raises(UsageError):
        writer.put(9001, ZERO_DIGEST)


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    with DigestWriter(tmp_path / "d", HEADER) as writer:
        writer.put(1, b"x" * 16)
    with pytest.raises(ReplicaError, match="never completed"):
        DigestReader(tmp_path / "d")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, HEADER_BYTES + 101 * DIGEST_BYTES - 1), change=st.integers(1, 255))
def test_one_changed_byte_is_noticed(tmp_path: Path, position: int, change: int) -> None:
    path = make(tmp_path / "d", DigestHeader("p1", 100 * MIB + 1, MIB), (0, 50, 100))
    content = bytearray(path.read_bytes())
    content[position] ^= change
    path.write_bytes(content)
    with pytest.raises(ReplicaError):
        DigestReader(path)


@pytest.mark.parametrize("length", [0, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 16, 1 << 20])
def test_a_file_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = make(tmp_path / "d")
    os.truncate(path, length)
    with pytest.raises(ReplicaError):
        DigestReader(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match="No such file"):
        DigestReader(tmp_path / "nothing")


def test_the_checksum_does_not_depend_on_holes(tmp_path: Path) -> None:
    path = make(tmp_path / "d")
    dense = tmp_path / "dense"
    dense.write_bytes(path.read_bytes())
    with DigestReader(dense) as reader, DigestReader(path) as other:
        assert reader.header == other.header


def test_copies_are_equal_and_stay_sparse(tmp_path: Path) -> None:
    size = 10 << 40
    source = make(tmp_path / "d", DigestHeader("p", size, MIB), tuple(range(0, size // MIB, 1 << 20)))
    copy_digests(source, tmp_path / "copy")
    assert source.stat().st_size == (tmp_path / "copy").stat().st_size == HEADER_BYTES + size // MIB * 16
    assert (tmp_path / "copy").stat().st_blocks <= source.stat().st_blocks
    with DigestReader(source) as left, DigestReader(tmp_path / "copy") as right:
        assert left.header == right.header


def test_a_power_cut_while_a_file_is_begun_leaves_the_base_digests_or_no_file(
    tmp_path: Path,
) -> None:
    header = DigestHeader("p2", HEADER.size, MIB)
    with DigestReader(make(tmp_path / "base")) as base:
        wanted = base.read(0, 9001)
        continued = 0
        for seed in range(60):
            path = tmp_path / f"new-{seed}"
            with pytest.MonkeyPatch.context() as patch:
                power = Power(patch, random.Random(seed))
                power.left = seed % 8
                with suppress(PowerCut):
                    DigestWriter(path, header, base).close()
                power.after_cut(path)
            continued += path.read_bytes()[:8] == b"USTDIGST"
            with DigestWriter(path, header, base, keep=True) as writer:
                assert writer.read(0, 9001) == wanted
    assert continued


def test_a_grown_copy_has_zeros_behind_and_a_shrunk_one_is_cut(tmp_path: Path) -> None:
    with DigestReader(make(tmp_path / "d")) as base:
        for blocks in (20_000, 5001):
            with DigestWriter(tmp_path / "new", DigestHeader("p2", blocks * MIB, MIB), base) as writer:
                assert writer.read(5000, 1) == base.read(5000, 1)
                assert writer.read(blocks - 1, 1) == (ZERO_DIGEST if blocks > 9001 else base.read(5000, 1))
                writer.clear(0, 5001)
                assert writer.read(0, 5001) == bytes(5001 * DIGEST_BYTES)


def test_a_block_whose_length_changed_is_unknown(tmp_path: Path) -> None:
    with DigestReader(make(tmp_path / "d", DigestHeader("p", 10 * MIB + 512, MIB), (1, 10))) as reader:
        same = PointDigests(reader, 10 * MIB + 512)
        assert same.known(10) is not None
        grown = PointDigests(reader, 20 * MIB)
        assert grown.known(10) is None
        assert (grown.known(9), grown.known(11)) == (ZERO_DIGEST, ZERO_DIGEST)
        shrunk = PointDigests(reader, 5 * MIB + 512)
        assert shrunk.known(5) is None
        assert grown.nonzero(Extent(0, 20 * MIB)) == [Extent(MIB, MIB), Extent(10 * MIB, MIB)]
        assert same.nonzero(Extent(2 * MIB, 8 * MIB + 512)) == [Extent(10 * MIB, 512)]
