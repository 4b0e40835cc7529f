"""The layer writer, judged by QEMU."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import DatastoreError, ReplicaError
from understudy.storage.qcow2.format import CLUSTER, build_header, check_maps, layer_is_empty, read_header, rebind
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.units import GIB, KIB, MIB

from .replica_lab import assert_clean, content, qemu, random_data, scribble

QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    directory = tmp_path / "layers"
    directory.mkdir()
    return directory


@QUICK
@given(seed=st.integers(0, 2**32), first_sectors=st.integers(1, 6000), grown_sectors=st.integers(0, 3000))
def test_chains_of_random_writes_and_zeros_read_as_the_model_says(
        tmp_path_factory: pytest.TempPathFactory, seed: int, first_sectors: int, grown_sectors: int) -> None:
    directory = tmp_path_factory.mktemp("chain") / "layers"
    directory.mkdir()
    rng = random.Random(seed)
    image = bytearray(first_sectors * 512)
    backing = ""
    expected = []
    for number in range(3):
        image.extend(bytes(grown_sectors * 512 * (number == 1)))
        path = directory / f"{number}.qcow2"
        writer = Qcow2LayerWriter(path, len(image), backing)
        scribble(rng, writer, image, rng.randint(0, 12))
        writer.finish()
        backing = path.name
        expected.append((path, bytes(image)))
    for path, wanted in expected:
        assert content(path) == wanted
        assert_clean(path)


def test_a_cluster_written_zeroed_and_written_again_has_the_last_content(layers: Path) -> None:
    path = layers / "a.qcow2"
    writer = Qcow2LayerWriter(path, 4 * CLUSTER)
    writer.write_at(0, b"\1" * 4 * CLUSTER)
    writer.zero(0, 3 * CLUSTER)
    writer.write_at(CLUSTER, b"\2" * CLUSTER)
    writer.write_at(CLUSTER, b"\3" * CLUSTER)
    writer.finish()
    assert content(path) == bytes(CLUSTER) + b"\3" * CLUSTER + bytes(CLUSTER) + b"\1" * CLUSTER
    assert_clean(path)
    assert path.stat().st_size == 9 * CLUSTER  # header, L1, L2, 4 of data, refcount block and table: written in place


def test_zeros_hide_what_the_layer_below_has(layers: Path) -> None:
    below = Qcow2LayerWriter(layers / "a.qcow2", 8 * CLUSTER + 512)
    below.write_at(0, b"\7" * (8 * CLUSTER + 512))
    below.finish()
    above = Qcow2LayerWriter(layers / "b.qcow2", 8 * CLUSTER + 512, "a.qcow2")
    above.zero(2 * CLUSTER, 6 * CLUSTER + 512)
    above.finish()
    assert content(layers / "b.qcow2") == b"\7" * 2 * CLUSTER + bytes(6 * CLUSTER + 512)


def test_zeros_in_a_layer_of_its_own_take_no_space(layers: Path) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", 64 * GIB)
    writer.zero(0, 64 * GIB)
    writer.finish()
    assert (layers / "a.qcow2").stat().st_size == 4 * CLUSTER
    assert layer_is_empty(layers / "a.qcow2")


def test_ranges_across_the_edges_of_l2_tables_are_right(layers: Path) -> None:
    size = 2 * GIB + 512
    edge = 512 * MIB
    data = random_data(random.Random(1), 2 * MIB)
    below = Qcow2LayerWriter(layers / "a.qcow2", size)
    below.write_at(edge - MIB, data)
    below.write_at(2 * edge - MIB, data)
    below.write_at(size - 512, b"\5" * 512)
    below.finish()
    above = Qcow2LayerWriter(layers / "b.qcow2", size, "a.qcow2")
    above.zero(edge - 64 * KIB, edge + 128 * KIB)  # from before one edge to behind the next
    above.finish()
    raw = layers.parent / "raw"
    qemu("qemu-img", "convert", "-O", "raw", layers / "b.qcow2", raw)
    with raw.open("rb") as file:
        file.seek(edge - MIB)
        assert file.read(2 * MIB) == data[:MIB - 64 * KIB] + bytes(MIB + 64 * KIB)
        file.seek(2 * edge - MIB)
        assert file.read(2 * MIB) == bytes(MIB + 64 * KIB) + data[MIB + 64 * KIB:]
        file.seek(size - 512)
        assert file.read() == b"\5" * 512
    assert_clean(layers / "a.qcow2")
    assert_clean(layers / "b.qcow2")


def test_a_disk_of_10_tib_needs_little_for_few_writes(layers: Path) -> None:
    size = 10 << 40
    path = layers / "a.qcow2"
    writer = Qcow2LayerWriter(path, size)
    for index in range(8):
        writer.write_at(index * (1 << 40), bytes([index + 1]) * MIB)
    writer.write_at(size - CLUSTER, b"\x99" * CLUSTER)
    writer.finish()
    assert path.stat().st_size < 12 * MIB
    assert_clean(path)
    reads = [part for index in range(8) for part in ("-c", f"read -P {index + 1} {index << 40} 1M")]
    output = qemu("qemu-io", "-r", "-f", "qcow2", *reads, "-c", f"read -P 0x99 {size - CLUSTER} 64k",
                  "-c", f"read -P 0 {1 << 39} 1M", path)
    assert "Pattern verification failed" not in output


def test_a_file_that_needs_several_refcount_blocks_is_clean(layers: Path) -> None:
    path = layers / "a.qcow2"
    writer = Qcow2LayerWriter(path, 5 * GIB)
    writer._clusters = 70_000  # as if 4.3 GiB had been written; those clusters leak, which the check must see
    writer.write_at(4 * GIB, b"\1" * CLUSTER)
    writer.finish()
    done = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, text=True, check=False)
    assert '"leaks": 69998' in done.stdout
    assert '"corruptions"' not in done.stdout
    qemu("qemu-img", "check", "-r", "leaks", path)
    output = qemu("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 1 {4 * GIB} 64k", path)
    assert "failed" not in output


def test_threads_that_write_at_once_lose_nothing(layers: Path) -> None:
    pieces = 96
    data = [random_data(random.Random(index), 3 * CLUSTER) for index in range(pieces)]
    writer = Qcow2LayerWriter(layers / "a.qcow2", pieces * 3 * CLUSTER)

    def work(remainder: int) -> None:
        for index in range(remainder, pieces, 8):
            writer.write_at(index * 3 * CLUSTER, data[index])
            writer.zero(index * 3 * CLUSTER, CLUSTER)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finish()
    assert content(layers / "a.qcow2") == b"".join(bytes(CLUSTER) + piece[CLUSTER:] for piece in data)
    assert_clean(layers / "a.qcow2")


def test_one_call_is_one_contiguous_place(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    writer = Qcow2LayerWriter(layers / "a.qcow2", GIB)
    original = os.pwrite

    def noted(fd: int, data: bytes, at: int) -> int:
        calls.append(len(data))
        return original(fd, data, at)

    monkeypatch.setattr(os, "pwrite", noted)
    writer.write_at(512 * MIB - MIB, bytes(2 * MIB))
    assert calls == [CLUSTER, CLUSTER, 128, 128, 2 * MIB]
    writer.close()


def test_short_writes_of_the_system_are_continued(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_data(random.Random(3), 4 * CLUSTER)
    writer = Qcow2LayerWriter(layers / "a.qcow2", 4 * CLUSTER)
    original = os.pwrite
    with monkeypatch.context() as patch:

        def short(fd: int, data: bytes, at: int) -> int:
            return original(fd, data[:max(1, len(data) // 2)], at)

        patch.setattr(os, "pwrite", short)
        writer.write_at(0, data)
    writer.finish()
    assert content(layers / "a.qcow2") == data


@pytest.mark.parametrize(("offset", "length"), [
    (1, CLUSTER), (0, 100), (CLUSTER, 512), (-CLUSTER, CLUSTER), (3 * CLUSTER, CLUSTER), (3 * CLUSTER, 2 * CLUSTER),
    (0, 4 * CLUSTER)])
def test_ranges_off_the_clusters_or_the_disk_are_refused(layers: Path, offset: int, length: int) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", 3 * CLUSTER + 512)
    with pytest.raises(ReplicaError):
        writer.write_at(offset, bytes(length))
    with pytest.raises(ReplicaError):
        writer.zero(offset, length)
    writer.write_at(3 * CLUSTER, bytes(512))
    writer.finish()
    with pytest.raises(ReplicaError, match="finished or closed"):
        writer.write_at(0, bytes(CLUSTER))
    with pytest.raises(ReplicaError, match="finished or closed"):
        writer.zero(0, CLUSTER)
    with pytest.raises(ReplicaError, match="finished or closed"):
        writer.finish()


@pytest.mark.parametrize("size", [0, -512, 100, CLUSTER + 1])
def test_sizes_that_qemu_would_round_are_refused(layers: Path, size: int) -> None:
    with pytest.raises(ReplicaError):
        Qcow2LayerWriter(layers / "a.qcow2", size)


def test_an_unfinished_file_is_no_image(layers: Path) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", MIB)
    writer.write_at(0, b"\1" * MIB)
    writer.close()
    with pytest.raises(ReplicaError, match="no finished qcow2"):
        read_header(layers / "a.qcow2")
    with pytest.raises(AssertionError):
        qemu("qemu-img", "info", "-f", "qcow2", layers / "a.qcow2")


def test_a_layer_with_a_failed_write_is_never_finished(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", MIB)
    with monkeypatch.context() as patch:
        patch.setattr("understudy.storage.qcow2.layer.pwrite_all", _full)
        with pytest.raises(DatastoreError, match="datastore is full"):
            writer.write_at(0, bytes(MIB))
    with pytest.raises(DatastoreError, match="an earlier write"):
        writer.finish()
    writer.close()


def _full(fd: int, data: bytes, offset: int) -> None:
    raise OSError(28, "No space left on device")


def test_closing_waits_for_the_threads_that_write(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", MIB)
    inside, go_on = threading.Event(), threading.Event()
    original = os.pwrite

    def slow(fd: int, data: bytes, offset: int) -> int:
        if len(data) == MIB:
            inside.set()
            go_on.wait(10)
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    thread = threading.Thread(target=writer.write_at, args=(0, bytes(MIB)))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ReplicaError, match="still under way"):
        writer.finish()
    writer.close()
    os.fstat(writer._fd)
    go_on.set()
    thread.join()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer._fd)


def test_emptiness_is_that_nothing_was_written(layers: Path) -> None:
    Qcow2LayerWriter(layers / "a.qcow2", GIB).finish()
    path = layers / "b.qcow2"
    Qcow2LayerWriter(path, GIB, "a.qcow2").finish()
    assert layer_is_empty(path)
    qemu("qemu-io", "-f", "qcow2", "-c", "read 0 1M", path)
    assert layer_is_empty(path)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -z 900M 64k", path)
    assert not layer_is_empty(path)
    other = layers / "c.qcow2"
    Qcow2LayerWriter(other, GIB, "a.qcow2").finish()
    qemu("qemu-img", "snapshot", "-c", "x", other)
    assert not layer_is_empty(other)


def test_reading_leaves_a_layer_as_it_is(layers: Path) -> None:
    writer = Qcow2LayerWriter(layers / "a.qcow2", MIB)
    writer.write_at(0, b"\1" * MIB)
    writer.finish()
    before = hashlib.sha256((layers / "a.qcow2").read_bytes()).digest()
    qemu("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 1M", layers / "a.qcow2")
    assert hashlib.sha256((layers / "a.qcow2").read_bytes()).digest() == before


def test_rebinding_changes_the_name_alone_also_after_qemu_rewrote_the_header(layers: Path) -> None:
    for name in ("a", "a-much-longer-name", "c"):
        writer = Qcow2LayerWriter(layers / f"{name}.qcow2", MIB)
        writer.write_at(0, name.encode() * (CLUSTER // len(name)) + bytes(CLUSTER - CLUSTER // len(name) * len(name)))
        writer.finish()
    path = layers / "top.qcow2"
    Qcow2LayerWriter(path, MIB, "a.qcow2").finish()
    for rewrite in (False, False, True, False, True):
        for name in ("a-much-longer-name.qcow2", "c.qcow2", "a.qcow2"):
            rebind(path, name)
            if rewrite:
                qemu("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
                qemu("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=off", path)
            assert read_header(path).backing == name
            assert content(path) == content(layers / name)
    assert '"backing-filename-format": "qcow2"' in qemu("qemu-img", "info", "--output=json", path)


@QUICK
@given(position=st.integers(0, 4200), value=st.integers(0, 255), cut=st.integers(0, 3 * CLUSTER))
def test_a_damaged_header_is_a_replica_error_or_still_consistent(
        tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.qcow2"
    Qcow2LayerWriter(path, MIB, "vda-1.qcow2").finish()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[position] = value
    for data in (bytes(damaged), whole[:cut]):
        path.write_bytes(data)
        try:
            header = read_header(path)
            layer_is_empty(path)
        except ReplicaError:
            continue
        assert header.l1_offset + header.l1_entries * 8 <= len(data)


@pytest.mark.parametrize(("at", "value", "why"), [
    (4, struct.pack(">I", 2), "version 3"), (20, struct.pack(">I", 21), "features"), (24, bytes(8), "virtual size"),
    (24, struct.pack(">Q", 513), "virtual size"), (32, struct.pack(">I", 2), "features"),
    (40, struct.pack(">Q", 1 << 40), "not inside the file"), (72, struct.pack(">Q", 2), "corrupt"),
    (72, struct.pack(">Q", 4), "features"), (8, struct.pack(">Q", CLUSTER), "not inside the header")])
def test_each_header_field_is_checked(layers: Path, at: int, value: bytes, why: str) -> None:
    path = layers / "a.qcow2"
    Qcow2LayerWriter(path, MIB, "b.qcow2").finish()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)
    with pytest.raises(ReplicaError, match=why):
        read_header(path)


@pytest.mark.parametrize("entry", [CLUSTER + 512, 1 << 40, 1 << 62 | CLUSTER, 4 * CLUSTER, 2])
def test_impossible_table_entries_are_found(layers: Path, entry: int) -> None:
    path = layers / "a.qcow2"
    writer = Qcow2LayerWriter(path, 4 * CLUSTER)
    writer.write_at(0, b"\1" * 4 * CLUSTER)
    writer.zero(0, CLUSTER)
    writer.finish()
    check_maps(path)
    with path.open("r+b") as file:
        file.seek(2 * CLUSTER + 8)  # the second entry of the L2 table
        file.write(struct.pack(">Q", entry))
    if entry == 4 * CLUSTER:  # what the entry was
        check_maps(path)
        with path.open("r+b") as file:
            file.seek(2 * CLUSTER + 16)
            file.write(struct.pack(">Q", entry))
    with pytest.raises(ReplicaError, match="impossible table entry"):
        check_maps(path)


def test_tables_have_no_holes(layers: Path) -> None:
    path = layers / "a.qcow2"
    writer = Qcow2LayerWriter(path, GIB)
    writer.zero(0, CLUSTER)
    writer.write_at(0, b"\1" * CLUSTER)
    writer.finish()
    with path.open("rb") as file:
        hole = os.lseek(file.fileno(), 2 * CLUSTER, os.SEEK_HOLE)
    assert hole == path.stat().st_size


def test_a_missing_layer_is_a_datastore_error(layers: Path) -> None:
    with pytest.raises(DatastoreError, match="no such file"):
        read_header(layers / "none.qcow2")


def test_the_header_fits_into_one_sector_but_for_the_name() -> None:
    assert len(build_header(MIB, "", CLUSTER, CLUSTER, 1)) < 512
