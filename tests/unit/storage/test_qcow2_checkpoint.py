"""Checkpoints of a layer, and what is made of it when it is reopened."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from understudy.errors import DatastoreError, ReplicaError
from understudy.model.extent import Extent
from understudy.storage.qcow2.format import CLUSTER, COPIED, ENTRIES_PER_TABLE, read_header
from understudy.storage.qcow2.journal import Journal, JournalHeader, Recorded, read_journal
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.reopen import reopen
from understudy.units import GIB, MIB

from .replica_lab import assert_clean, content, qemu, random_data

SIZE = 20 * CLUSTER + 512
L2 = 2 * CLUSTER  # place of the first L2 table: behind the header and the L1 table


def begin(directory: Path, size: int = SIZE, backing: str = "") -> Qcow2LayerWriter:
    journal = Journal.begin(directory / "journal", JournalHeader("p1", size, "", "m"))
    return Qcow2LayerWriter(directory / "layer", size, backing, journal=journal)


def recorded_in(directory: Path) -> Recorded:
    recorded = read_journal(directory / "journal")
    assert recorded is not None
    return recorded


def go_on(directory: Path, backing: str = "") -> tuple[Qcow2LayerWriter, tuple[Extent, ...]]:
    """Continue the layer; also its touched ranges."""
    recorded = recorded_in(directory)
    reopened = reopen(directory / "layer", recorded)
    assert reopened is not None
    journal = Journal.resume(directory / "journal", recorded)
    writer = Qcow2LayerWriter(directory / "layer", recorded.header.size, backing, journal=journal, reopened=reopened)
    return writer, reopened.touched


def put_entry(layer: Path, number: int, value: int) -> None:
    with layer.open("r+b") as file:
        file.seek(L2 + number * 8)
        file.write(struct.pack(">Q", value))


def test_what_was_written_after_the_last_checkpoint_is_dropped(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write_at(CLUSTER, b"\1" * 2 * CLUSTER)
    writer.checkpoint([Extent(CLUSTER, CLUSTER)])
    length = (tmp_path / "layer").stat().st_size
    writer.write_at(10 * CLUSTER, b"\2" * 3 * CLUSTER)
    writer.close()
    writer, touched = go_on(tmp_path)
    assert touched == (Extent(CLUSTER, 2 * CLUSTER), Extent(10 * CLUSTER, 3 * CLUSTER))
    assert recorded_in(tmp_path).complete == (Extent(CLUSTER, CLUSTER),)
    assert (tmp_path / "layer").stat().st_size == length
    writer.write_at(20 * CLUSTER, b"\3" * 512)
    writer.finish()
    assert content(tmp_path / "layer") == (
        bytes(CLUSTER) + b"\1" * 2 * CLUSTER + bytes(17 * CLUSTER) + b"\3" * 512)
    assert_clean(tmp_path / "layer")


def test_a_checkpoint_with_nothing_new_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begin(tmp_path)
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    writer.checkpoint(())
    assert syncs == []
    writer.zero(0, CLUSTER)
    writer.checkpoint(())
    assert len(syncs) == 2
    length = (tmp_path / "journal").stat().st_size
    writer.checkpoint(())
    assert len(syncs) == 2
    writer.checkpoint([Extent(0, CLUSTER)])
    assert len(syncs) == 4
    assert (tmp_path / "journal").stat().st_size > length
    writer.close()


def test_a_checkpoint_syncs_the_layer_before_it_writes_the_record(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)
    lengths: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: lengths.append(
        (os.fstat(fd).st_size, (tmp_path / "journal").stat().st_size)))
    header = (tmp_path / "journal").stat().st_size
    writer.checkpoint([Extent(0, CLUSTER)])
    record = (tmp_path / "journal").stat().st_size
    assert lengths == [(4 * CLUSTER, header), (record, record)]
    writer.close()


def test_writes_go_on_while_a_checkpoint_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)

    def slow(fd: int) -> None:
        thread = threading.Thread(target=writer.write_at, args=(CLUSTER, b"\2" * CLUSTER))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", slow)
        writer.checkpoint([Extent(0, CLUSTER)])
    assert recorded_in(tmp_path).clusters == 4
    writer.checkpoint(())
    assert recorded_in(tmp_path).clusters == 5
    writer.close()


@pytest.mark.parametrize("place", ["checkpoint.begun", "checkpoint.synced"])
def test_a_failed_checkpoint_ends_the_layer_and_claims_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)
    writer.checkpoint([Extent(0, CLUSTER)])
    writer.write_at(CLUSTER, b"\1" * CLUSTER)

    def fail(name: str) -> None:
        if name == place:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("understudy.storage.qcow2.layer.fault_point", fail)
        with pytest.raises(DatastoreError, match="input/output error"):
            writer.checkpoint([Extent(CLUSTER, CLUSTER)])
    for act in (writer.finish, lambda: writer.checkpoint(()), lambda: writer.zero(0, CLUSTER)):
        with pytest.raises(DatastoreError, match="an earlier write"):
            act()
    writer.close()
    assert recorded_in(tmp_path).complete == (Extent(0, CLUSTER),)


@pytest.mark.parametrize("ranges", [[Extent(-CLUSTER, 2 * CLUSTER)], [Extent(20 * CLUSTER, CLUSTER)]])
def test_what_is_outside_the_disk_cannot_be_complete(tmp_path: Path, ranges: list[Extent]) -> None:
    writer = begin(tmp_path)
    with pytest.raises(ReplicaError, match="outside the disk"):
        writer.checkpoint(ranges)
    writer.close()


def test_a_layer_without_a_journal_has_no_checkpoints(tmp_path: Path) -> None:
    writer = Qcow2LayerWriter(tmp_path / "layer", SIZE)
    with pytest.raises(ReplicaError, match="no journal"):
        writer.checkpoint(())
    writer.close()


def test_a_full_datastore_leaks_nothing_into_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)
    writer.checkpoint(())
    seen = []

    def full(fd: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    original = Qcow2LayerWriter._places

    def then_a_checkpoint(self: Qcow2LayerWriter, first: int, length: int) -> object:
        try:
            return original(self, first, length)
        finally:  # in another thread this may come before the call has ended
            with pytest.raises(DatastoreError, match="an earlier write"):
                self.checkpoint([Extent(0, CLUSTER)])
            seen.append(True)

    with monkeypatch.context() as patch:
        patch.setattr("understudy.storage.qcow2.layer.pwrite_all", full)
        patch.setattr(Qcow2LayerWriter, "_places", then_a_checkpoint)
        with pytest.raises(DatastoreError, match="full"):
            writer.write_at(CLUSTER, b"\2" * CLUSTER)
    assert seen
    writer.close()
    writer, _ = go_on(tmp_path)
    writer.finish()
    assert_clean(tmp_path / "layer")


def test_a_layer_that_was_finished_can_be_continued(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * SIZE)
    writer.checkpoint([Extent(0, SIZE)])
    writer.finish()
    (tmp_path / "layer").chmod(0o400)
    writer, touched = go_on(tmp_path)
    assert touched == (Extent(0, SIZE),)
    assert (tmp_path / "layer").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ReplicaError, match="no finished qcow2"):
        read_header(tmp_path / "layer")
    writer.write_at(0, b"\2" * CLUSTER)
    writer.finish()
    assert content(tmp_path / "layer") == b"\2" * CLUSTER + b"\1" * (SIZE - CLUSTER)
    assert_clean(tmp_path / "layer")


@pytest.mark.parametrize("entry", [2, CLUSTER + 512, 1 << 62 | CLUSTER, 1, COPIED | 1 << 40, COPIED | CLUSTER])
def test_impossible_entries_are_dropped_and_told_as_touched(tmp_path: Path, entry: int) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)
    writer.checkpoint([Extent(0, CLUSTER)])
    writer.close()
    put_entry(tmp_path / "layer", 5, entry)
    put_entry(tmp_path / "layer", 21, entry)  # behind the end of the disk
    writer, touched = go_on(tmp_path)
    assert touched == (Extent(0, CLUSTER), Extent(5 * CLUSTER, CLUSTER))
    writer.finish()
    assert content(tmp_path / "layer") == b"\1" * CLUSTER + bytes(SIZE - CLUSTER)
    assert_clean(tmp_path / "layer")


@pytest.mark.parametrize("entry", [0, 2, COPIED | 4 * CLUSTER, COPIED | 1 << 40])
def test_a_layer_whose_tables_are_not_as_recorded_is_not_continued(tmp_path: Path, entry: int) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * 2 * CLUSTER)
    writer.checkpoint(())
    writer.close()
    put_entry(tmp_path / "layer", 0 if entry != COPIED | 4 * CLUSTER else 2, entry)
    before = (tmp_path / "layer").read_bytes()
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is None
    assert (tmp_path / "layer").read_bytes() == before


def test_a_cut_or_missing_file_is_not_continued(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    writer.write_at(0, b"\1" * CLUSTER)
    writer.checkpoint(())
    writer.close()
    os.truncate(tmp_path / "layer", CLUSTER)
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is None
    (tmp_path / "layer").unlink()
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is None


def test_a_layer_written_where_it_was_called_complete_is_not_continued(tmp_path: Path) -> None:
    base = Qcow2LayerWriter(tmp_path / "base", SIZE)
    base.finish()
    writer = begin(tmp_path, backing="base")
    writer.zero(0, 4 * CLUSTER)
    writer.checkpoint([Extent(0, 2 * CLUSTER)])
    writer.write_at(2 * CLUSTER, b"\1" * CLUSTER)  # this the caller may do, and nothing is lost
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is not None
    writer.write_at(CLUSTER, b"\1" * CLUSTER)
    writer.close()
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is None


def test_layers_with_several_tables_are_continued(tmp_path: Path) -> None:
    size = 3 * GIB + 512
    edge = ENTRIES_PER_TABLE * CLUSTER
    data = random_data(random.Random(1), 2 * MIB)
    writer = begin(tmp_path, size)
    writer.write_at(edge - MIB, data)
    writer.checkpoint([Extent(edge - MIB, 2 * MIB)])
    writer.write_at(size - 512, b"\5" * 512)
    writer.checkpoint(())
    writer.write_at(4 * edge - MIB, data)  # a table that no checkpoint knows
    writer.close()
    writer, touched = go_on(tmp_path)
    assert touched == (Extent(edge - MIB, 2 * MIB), Extent(size - 512, 512))
    writer.write_at(3 * edge - MIB, data)
    writer.checkpoint(())
    writer.close()
    writer, touched = go_on(tmp_path)
    assert touched == (Extent(edge - MIB, 2 * MIB), Extent(3 * edge - MIB, 2 * MIB), Extent(size - 512, 512))
    writer.finish()
    assert_clean(tmp_path / "layer")
    raw = tmp_path / "raw"
    qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "layer", raw)
    with raw.open("rb") as file:
        for start in (edge, 3 * edge):
            file.seek(start - MIB)
            assert file.read(2 * MIB) == data
        file.seek(4 * edge - MIB)
        assert file.read(MIB) == bytes(MIB)
        file.seek(size - 512)
        assert file.read() == b"\5" * 512


def test_whole_tables_are_told_as_one_range(tmp_path: Path) -> None:
    size = 2 * ENTRIES_PER_TABLE * CLUSTER
    Qcow2LayerWriter(tmp_path / "base", size).finish()
    writer = begin(tmp_path, size, "base")
    for table in range(2):  # places without their data, which would be 1 GiB
        with writer._lock:
            writer._table(table)
            writer._map(table, 0, ENTRIES_PER_TABLE)
    os.truncate(tmp_path / "layer", writer._clusters * CLUSTER)
    writer.zero(size // 2, CLUSTER)
    writer.checkpoint([Extent(0, size)])
    writer.close()
    writer, touched = go_on(tmp_path, "base")
    assert touched == (Extent(0, size),)
    writer.close()
    put_entry(tmp_path / "layer", 77, COPIED | (recorded_in(tmp_path).clusters + 1) * CLUSTER)
    assert reopen(tmp_path / "layer", recorded_in(tmp_path)) is None


KILLED = """
import random, sys, threading
from pathlib import Path
from tests.unit.storage.test_qcow2_checkpoint import *
directory, pieces = Path(sys.argv[1]), 400
writer = begin(directory, pieces * 2 * CLUSTER)
done, todo = set(), iter(range(pieces))
def work():
    for index in todo:
        writer.write_at(index * 2 * CLUSTER, random_data(random.Random(index), 2 * CLUSTER))
        done.add(index)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
told = set()
while len(told) < pieces:
    new = set(done) - told
    writer.checkpoint([Extent(index * 2 * CLUSTER, 2 * CLUSTER) for index in new])
    told |= new
    for index in sorted(new):
        print(index, flush=True)
print("end", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("after", [1, 60, 200])
def test_a_killed_writer_leaves_all_that_it_checkpointed(tmp_path: Path, after: int) -> None:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', root / 'src')}"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    told = [int(process.stdout.readline()) for _ in range(after)]
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told += [int(line) for line in process.stdout if line.strip().isdigit()]
    process.stdout.close()
    process.stdin.close()
    recorded = recorded_in(tmp_path)
    complete = {index for item in recorded.complete
                for index in range(item.start // (2 * CLUSTER), item.end // (2 * CLUSTER))}
    assert complete >= set(told[:-1])
    writer, _ = go_on(tmp_path)
    writer.finish()
    assert_clean(tmp_path / "layer")
    shown = content(tmp_path / "layer")
    for index in complete:
        part = shown[index * 2 * CLUSTER:(index + 1) * 2 * CLUSTER]
        assert part == random_data(random.Random(index), 2 * CLUSTER)
