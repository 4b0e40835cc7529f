"""Disks written in place through NBD: exactly what was asked, in flight within bounds, durable when called finished."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import served
from understudy.errors import DatastoreError, ReplicaError
from understudy.model.extent import PART, Extent
from understudy.nbd import ALLOCATION, NbdClient
from understudy.storage.snapshots.leaf import MOST_BYTES, MOST_REQUESTS, Holds, LeafWriter
from understudy.units import MIB

from .snapshot_lab import SIZE, Leaf, anything, nothing, served_leaf


def writer(leaf: Leaf, size: int = SIZE, holds: Holds = nothing) -> LeafWriter:
    return LeafWriter("write disk 'vda'", size, NbdClient(leaf.socket, "disk"), holds)


def allocated(path: Path) -> list[tuple[int, int]]:
    """First and last byte of each area that the file has."""
    found: list[tuple[int, int]] = []
    position = 0
    with path.open("rb") as file:
        while True:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return found
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, position))


def test_what_is_written_is_there_and_the_odd_last_piece_too(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    with served_leaf(tmp_path / "leaf", SIZE) as leaf:
        disk = writer(leaf)
        disk.write_at(4 * PART, memoryview(data)[4 * PART :])
        disk.write_at(0, bytearray(data[: 4 * PART]))
        disk.finish()
        assert disk.finished
        assert leaf.path.read_bytes() == data


@pytest.mark.parametrize(("offset", "length"), [(512, PART), (0, 512), (-PART, PART), (4 * PART, 2 * PART)])
def test_what_is_not_whole_parts_of_the_disk_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    with served_leaf(tmp_path / "leaf", SIZE) as leaf:
        disk = writer(leaf)
        with pytest.raises(ReplicaError):
            disk.write_at(offset, bytes(length))
        with pytest.raises(ReplicaError):
            disk.zero(offset, length)
        disk.close()


def test_zeros_of_a_new_disk_are_not_written(tmp_path: Path) -> None:
    size = 8 * MIB
    with served_leaf(tmp_path / "leaf", size) as leaf:
        disk = writer(leaf, size)
        disk.write_at(2 * MIB, b"\1" * PART)
        disk.zero(0, 2 * MIB)
        disk.zero(2 * MIB + PART, 6 * MIB - PART)
        disk.finish()
        assert allocated(leaf.path) == [(2 * MIB, 2 * MIB + PART)]


def test_zeros_are_written_where_the_disk_may_hold_something(tmp_path: Path) -> None:
    """S6, and no more than that: what is said to be zero keeps what it has."""
    size = 4 * MIB

    def holds(run: Extent) -> Sequence[Extent]:
        return [Extent(run.start // MIB * MIB, 2 * MIB)]  # more than was asked: whole blocks

    with served_leaf(tmp_path / "leaf", size, b"\7" * size) as leaf:
        disk = writer(leaf, size, holds)
        disk.zero(MIB + PART, 2 * MIB)
        disk.finish()
        assert leaf.path.read_bytes() == b"\7" * (MIB + PART) + bytes(2 * MIB - PART) + b"\7" * MIB


def test_what_this_writer_wrote_is_zeroed_whatever_was_known_before(tmp_path: Path) -> None:
    size = 4 * MIB
    with served_leaf(tmp_path / "leaf", size) as leaf:
        disk = writer(leaf, size)
        disk.write_at(MIB, b"\1" * (3 * PART))
        disk.zero(MIB + PART, MIB)
        disk.finish()
        assert leaf.path.read_bytes() == bytes(MIB) + b"\1" * PART + bytes(3 * MIB - PART)


def test_the_leaf_is_read_on_the_same_connection(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(SIZE)
    with served_leaf(tmp_path / "leaf", SIZE, content) as leaf:
        disk = writer(leaf, holds=anything)
        view = memoryview(bytearray(PART))
        disk.read_at(PART, view)
        assert view == content[PART : 2 * PART]
        disk.close()


def test_several_threads_write_what_each_of_them_says(tmp_path: Path) -> None:
    size = 16 * MIB
    data = random.Random(3).randbytes(size)
    with served_leaf(tmp_path / "leaf", size) as leaf:
        disk = writer(leaf, size)

        def write(first: int) -> None:
            for start in range(first * PART, size, 4 * PART):
                disk.write_at(start, data[start : start + PART])
                if start % MIB == 0:
                    disk.checkpoint([Extent(start, PART)])

        threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        disk.finish()
        assert leaf.path.read_bytes() == data


@pytest.mark.parametrize(("errno", "why"), [(28, "the datastore is full"), (5, "writing fails")])
def test_a_write_that_fails_is_told_at_the_latest_by_finish_and_nothing_can_follow(tmp_path: Path, errno: int,
                                                                                   why: str) -> None:
    with served_leaf(tmp_path / "leaf", SIZE, b"", "iotype=write", f"errno={errno}") as leaf:
        disk = writer(leaf)
        disk.write_at(0, b"\1" * PART)  # it is under way, nobody knows yet
        with pytest.raises(DatastoreError, match=why) as caught:
            disk.finish()
        assert caught.value.what == "write disk 'vda'"
        assert caught.value.todo
        again = f"an earlier write to it failed: {why}"
        with pytest.raises(DatastoreError, match=again):
            disk.write_at(PART, b"\1" * PART)
        with pytest.raises(DatastoreError, match=again):
            disk.checkpoint([])
        with pytest.raises(DatastoreError, match=again):
            disk.finish()
        assert not disk.finished
        disk.close()


def test_a_flush_that_fails_leaves_the_disk_unfinished(tmp_path: Path) -> None:
    with served_leaf(tmp_path / "leaf", SIZE, b"", "iotype=flush", "errno=5") as leaf:
        disk = writer(leaf)
        disk.write_at(0, b"\1" * PART)
        with pytest.raises(DatastoreError):
            disk.finish()
        assert not disk.finished
        disk.close()


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    with served_leaf(tmp_path / "leaf", SIZE) as leaf:
        disk = writer(leaf)
        disk.write_at(0, b"\1" * PART)
        leaf.process.kill()
        leaf.process.wait()
        with pytest.raises(DatastoreError):
            disk.finish()
        assert not disk.finished
        disk.close()


@pytest.mark.parametrize("place", [0, 3 * MIB + 5, 8 * MIB - 1])
def test_a_disk_that_must_be_new_and_is_not_is_refused(tmp_path: Path, place: int) -> None:
    size = 8 * MIB
    with served_leaf(tmp_path / "leaf", size) as leaf:
        with leaf.path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        disk = LeafWriter("write disk 'vda'", size, NbdClient(leaf.socket, "disk", (ALLOCATION,)), nothing)
        with pytest.raises(ReplicaError, match="holds something already"):
            disk.refuse_content()
        disk.close()


@pytest.mark.parametrize("contexts", [(ALLOCATION,), ()])
def test_a_new_disk_is_taken_be_it_thin_or_thick(tmp_path: Path, contexts: tuple[str, ...]) -> None:
    for content in (b"", bytes(8 * MIB)):
        with served_leaf(tmp_path / "leaf", 8 * MIB, content) as leaf:
            disk = LeafWriter("write disk 'vda'", 8 * MIB, NbdClient(leaf.socket, "disk", contexts), nothing)
            disk.refuse_content()
            disk.finish()


def test_what_is_in_flight_is_bounded_and_a_writer_that_waits_can_be_stopped(tmp_path: Path) -> None:
    size = 64 * MIB
    with served_leaf(tmp_path / "leaf", size) as leaf:
        disk = writer(leaf, size)
        os.kill(leaf.process.pid, signal.SIGSTOP)
        begun: list[int] = []
        errors: list[Exception] = []

        def write() -> None:
            try:
                for start in range(0, size, MIB):
                    begun.append(start)
                    disk.write_at(start, b"\1" * MIB)
            except ReplicaError as exc:
                errors.append(exc)

        thread = threading.Thread(target=write)
        thread.start()
        deadline = time.monotonic() + 30
        while len(begun) <= MOST_BYTES // MIB:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(begun) == MOST_BYTES // MIB + 1
        assert len(disk._pending) <= MOST_REQUESTS
        disk.stop()
        thread.join(30)
        assert [exc.args[1] for exc in errors] == ["its draft has ended"]
        disk.close()


def test_a_finished_or_closed_disk_is_not_written(tmp_path: Path) -> None:
    with served_leaf(tmp_path / "leaf", SIZE) as leaf:
        for end in (LeafWriter.finish, LeafWriter.close):
            disk = writer(leaf)
            end(disk)
            disk.close()
            with pytest.raises(ReplicaError, match="finished or closed"):
                disk.write_at(0, bytes(PART))


def test_an_export_that_cannot_be_written_or_has_another_size_is_refused(tmp_path: Path) -> None:
    with served_leaf(tmp_path / "leaf", SIZE) as leaf, pytest.raises(ReplicaError, match=f"has {SIZE} bytes instead"):
        writer(leaf, SIZE + 512)
    with served(tmp_path, tmp_path / "leaf", "raw") as where, pytest.raises(ReplicaError, match="cannot be written"):
        LeafWriter("write disk 'vda'", SIZE, NbdClient(where.socket, where.export), nothing)
