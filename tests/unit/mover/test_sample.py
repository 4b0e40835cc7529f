"""Reading a sample: which pieces, and what is told of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import TransferError
from understudy.mover.api import NbdSource, OpenExport, ReadSample
from understudy.mover.exports import Exports
from understudy.mover.sample import PIECE, pieces, sample
from understudy.units import KIB, MIB


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    running = Exports(tmp_path)
    yield running
    running.close_all()


@given(st.integers(1, 1 << 44), st.integers(1, 64 * MIB))
def test_pieces_lie_in_the_disk_do_not_overlap_and_are_no_more_than_wanted(size: int, length: int) -> None:
    found = pieces(size, length)
    assert found[0].start == 0
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    assert all(piece.start % 512 == 0 and 0 < piece.length <= PIECE for piece in found)
    assert found[-1].end <= size
    assert sum(piece.length for piece in found) <= max(length, PIECE)


def test_a_short_disk_is_read_whole() -> None:
    assert sum(piece.length for piece in pieces(3 * MIB + 512, 4 * MIB)) == 3 * MIB + 512


def test_what_was_read_and_what_of_it_is_zero_is_told(exports: Exports, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB + 5)
        file.write(b"x" * KIB)
    _, source = exports.open(OpenExport(str(image), "raw", "", "test"))
    found = sample(ReadSample(source, 4 * MIB))
    assert (found.size, found.read_bytes, found.zero_bytes) == (64 * MIB, 4 * MIB, 3 * MIB)


def test_an_export_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransferError):
        sample(ReadSample(NbdSource(str(tmp_path / "gone.nbd"), "disk", ""), MIB))
