"""Retiring restore points: whatever the history, the others keep their content."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import DatastoreError, Refused, ReplicaError, UnderstudyError
from understudy.storage.qcow2.draft import Qcow2Draft
from understudy.storage.qcow2.format import CLUSTER, read_header
from understudy.storage.values import NewDisk
from understudy.units import KIB, MIB

from .replica_lab import Lab, assert_clean, content, lab_in, point_meta, qemu

DISKS = ("vda", "vdb", "sdc")


def random_point(lab: Lab, rng: random.Random, number: int) -> None:
    """Publish a point: disks come, go, grow, shrink, or start anew."""
    newest = lab.store.load().newest
    sizes = {disk.name: disk.size for disk in newest.disks} if newest else {"vda": rng.randint(1, 2000) * 512}
    for name in DISKS:
        chance = rng.random()
        if name in sizes and chance < 0.1 and len(sizes) > 1:
            del sizes[name]
        elif chance < 0.35:
            sizes[name] = sizes.get(name, 0) + rng.randint(1, 1500) * 512
        elif name in sizes and chance < 0.4:
            sizes[name] = rng.randint(1, 1000) * 512
    full = frozenset(name for name in sizes if rng.random() < 0.15)
    lab.add_point(rng, f"p{number:04}", sizes, full)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_every_point_keeps_its_content_through_random_histories(
        tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    with lab_in(tmp_path_factory.mktemp("history")) as lab:
        for number in range(9):
            random_point(lab, rng, number)
            points = [point.id for point in lab.store.load().points]
            if rng.random() < 0.3:
                lab.heads.clear()
                lab.store.bind_head(rng.choice(points))
                if rng.random() < 0.7:
                    lab.write_head("vda" if "vda" in lab.store.head().files else min(lab.store.head().files), 0, 7, 512)
            keep = points.index(lab.store.head().point) if lab.store.head().point else len(points) - 1
            if rng.random() < 0.6 and keep:
                lab.store.retire(tuple(points[:rng.randint(1, keep)]))
            lab.verify()
        lab.verify_files()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_in(tmp_path) as made:
        yield made


def three_points(lab: Lab, size: int = 20 * CLUSTER) -> None:
    for number in (1, 2, 3):
        lab.add_point(random.Random(number), f"p{number}", {"vda": size}, acts=12)


def test_the_lowest_file_shows_the_next_point_after_a_merge(lab: Lab) -> None:
    three_points(lab)
    replica = lab.store.retire(("p1",))
    first, second = (point.disks[0] for point in replica.points)
    assert (first.layer, first.backing, first.digest) == ("vda-p1.qcow2", "", "vda-p2.digest")
    assert (second.layer, second.backing) == ("vda-p3.qcow2", "vda-p1.qcow2")
    assert first.file_bytes == lab.store.image("p2", "vda").stat().st_size
    assert lab.store.image("p2", "vda").stat().st_mode & 0o777 == 0o400
    lab.verify()
    lab.verify_files()


def test_many_merges_one_after_another_stay_right(lab: Lab) -> None:
    rng = random.Random(5)
    lab.add_point(rng, "p00", {"vda": 30 * CLUSTER + 512}, acts=9)
    for number in range(1, 12):
        lab.add_point(rng, f"p{number:02}", {"vda": (30 + number) * CLUSTER + 512}, acts=6)
        if number > 2:
            lab.store.retire((lab.store.load().points[0].id,))
        lab.verify()
    lab.verify_files()


def test_trimmed_space_is_given_back(lab: Lab) -> None:
    size = 512 * MIB
    draft = lab.store.begin_point("p1", (NewDisk("vda", size, False),))
    for offset in range(0, size, 16 * MIB):
        draft.layer("vda").write_at(offset, b"\x55" * 16 * MIB)
    publish(draft, "p1")
    draft = lab.store.begin_point("p2", (NewDisk("vda", size, True),))
    draft.layer("vda").zero(0, 400 * MIB)
    draft.layer("vda").write_at(300 * MIB, b"\x66" * MIB)
    publish(draft, "p2")
    assert lab.store.image("p1", "vda").stat().st_blocks * 512 > 512 * MIB
    lab.store.retire(("p1",))
    image = lab.store.image("p2", "vda")
    assert image.stat().st_blocks * 512 < 120 * MIB
    assert_clean(image)
    output = qemu("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0 0 300M", "-c", "read -P 0x66 300M 1M",
                  "-c", "read -P 0 301M 99M", "-c", "read -P 0x55 400M 112M", image)
    assert "failed" not in output


def write_all(draft: Qcow2Draft, size: int) -> None:
    for offset in range(0, size, MIB):
        draft.layer("vda").write_at(offset, b"\1" * MIB)


def publish(draft: Qcow2Draft, point: str) -> None:
    draft.layer("vda").finish()
    draft.digest_path("vda").touch()
    draft.publish(point_meta(point))


def test_layers_of_their_own_are_only_deleted(lab: Lab) -> None:
    lab.add_point(random.Random(1), "p1", {"vda": MIB, "vdb": MIB})
    lab.add_point(random.Random(2), "p2", {"vda": MIB}, full=frozenset({"vda"}))
    before = lab.store.image("p2", "vda").stat()
    replica = lab.store.retire(("p1",))
    assert lab.store.image("p2", "vda").stat().st_mtime_ns == before.st_mtime_ns
    assert replica.points[0].disks[0].layer == "vda-p2.qcow2"
    lab.verify()
    lab.verify_files()


def test_a_damaged_layer_is_not_merged_but_can_be_dropped(lab: Lab) -> None:
    three_points(lab)
    lab.add_point(random.Random(4), "p4", {"vda": MIB}, full=frozenset({"vda"}))
    lower = lab.store.image("p1", "vda")
    whole = lower.read_bytes()
    lower.write_bytes(whole[:-CLUSTER])
    before = lab.store.load()
    with pytest.raises(ReplicaError, match="bytes long instead of"):
        lab.store.retire(("p1",))
    assert lab.store.load() == before
    assert lab.store.damage("p3") == [
        f"disk vda: layer vda-p1.qcow2: {len(whole) - CLUSTER} bytes long instead of {len(whole)}"]
    assert lab.store.damage("p4") == []
    lab.store.retire(("p1", "p2", "p3"))
    lab.verify()
    lab.verify_files()


@pytest.mark.parametrize(("points", "why"), [
    (("p2",), "not the oldest"), (("p1", "p1"), "not the oldest"), (("p1", "p3"), "not the oldest"),
    (("nope",), "not the oldest"), (("p1", "p2", "p3"), "newest restore point must stay")])
def test_only_the_oldest_points_can_go(lab: Lab, points: tuple[str, ...], why: str) -> None:
    three_points(lab)
    before = lab.store.load()
    with pytest.raises(Refused, match=why):
        lab.store.retire(points)
    assert lab.store.load() == before
    assert lab.store.retire(()) == before


def test_a_point_under_the_head_stays(lab: Lab) -> None:
    three_points(lab)
    lab.store.bind_head("p1")
    with pytest.raises(Refused, match="the replica VM lies on restore point 'p1'"):
        lab.store.retire(("p1",))
    lab.store.bind_head("p2")
    lab.write_head("vda", 3 * CLUSTER, 9, 4096)
    lab.store.retire(("p1",))
    facts = lab.store.head()
    assert (facts.point, facts.empty) == ("p2", False)
    assert read_header(Path(facts.files["vda"])).backing == "../layers/vda-p1.qcow2"
    lab.verify()


@contextmanager
def running(image: Path) -> Iterator[None]:
    """A process that has the image open as a running VM has."""
    process = subprocess.Popen(["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"read 0 512\n")
        process.stdin.flush()
        assert b"read 512" in process.stdout.readline()
        yield
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_nothing_happens_while_the_replica_vm_runs(lab: Lab) -> None:
    three_points(lab)
    lab.store.bind_head("p3")
    before = lab.store.load()
    with running(Path(lab.store.head().files["vda"])):
        with pytest.raises(Refused, match="in use"):
            lab.store.retire(("p1",))
        with pytest.raises(Refused, match="in use"):
            lab.store.bind_head("p2")
        with pytest.raises(Refused, match="in use"):
            lab.store.remove()
        assert lab.store.load() == before
    lab.verify()
    lab.store.retire(("p1",))
    lab.verify()


def test_a_merge_waits_while_the_replica_vm_runs_and_goes_on_later(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    three_points(lab)
    lab.store.bind_head("p2")
    with monkeypatch.context() as patch:
        patch.setenv("UNDERSTUDY_FAULT", "retire.recorded=error")
        with pytest.raises(UnderstudyError, match="asked for an error"):
            lab.store.retire(("p1",))
    lab.verify()
    with running(Path(lab.store.head().files["vda"])):
        said = lab.store.sweep()[0]
        assert "left a merge for later" in said
        assert "in use" in said
        lab.add_point(random.Random(9), "p4", {"vda": 20 * CLUSTER})
    lab.verify()
    assert lab.store.sweep()[0] == "merged 2 layers of disk vda"
    lab.verify()
    lab.verify_files()
    assert lab.store.sweep() == []


def test_a_vm_cannot_start_on_a_head_that_is_being_bound_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    three_points(lab)
    lab.store.bind_head("p2")
    head = lab.store.head().files["vda"]
    outcome = []

    def attempt(point: str) -> None:
        if point == "retire.committed":
            outcome.append(subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read 0 512", head], capture_output=True,
                                          text=True, check=False))

    monkeypatch.setattr("understudy.storage.qcow2.merge.fault_point", attempt)
    lab.store.retire(("p1",))
    assert "lock" in outcome[0].stderr
    lab.verify()


@pytest.mark.parametrize(("free", "retired"), [(0, False), (512 * KIB, True)])
def test_a_full_datastore_stops_a_merge_without_a_loss(tmp_path: Path, free: int, retired: bool) -> None:
    with mounted(tmp_path, "8m"), lab_in(tmp_path) as lab:
        lab.add_point(random.Random(1), "p1", {"vda": 4 * MIB + 512}, acts=5)
        lab.add_point(random.Random(2), "p2", {"vda": 4 * MIB + 512}, acts=12)
        filler = tmp_path / "filler"
        fill(filler)
        os.truncate(filler, filler.stat().st_size - free)
        for _ in range(2):
            with pytest.raises(DatastoreError, match="the datastore is full"):
                lab.store.retire(("p1",))
            assert (len(lab.store.load().points) == 1) == retired
            lab.verify()
        filler.unlink()
        lab.store.sweep()
        lab.verify()
        lab.store.retire(tuple(point.id for point in lab.store.load().points[:-1]))
        lab.verify()
        lab.verify_files()


def fill(path: Path) -> None:
    """Take all space that is left."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        _write_for_ever(file)


def _write_for_ever(file: FileIO) -> None:
    while True:
        file.write(bytes(4096))


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    """A small file system."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_full_datastore_stops_a_point_without_a_loss(tmp_path: Path) -> None:
    with mounted(tmp_path, "8m"), lab_in(tmp_path) as lab:
        lab.add_point(random.Random(1), "p1", {"vda": MIB})
        draft = lab.store.begin_point("p2", (NewDisk("vda", 64 * MIB, True),))
        with pytest.raises(DatastoreError, match="the datastore is full"):
            write_all(draft, 64 * MIB)
        with pytest.raises(DatastoreError, match="an earlier write"):
            draft.layer("vda").finish()
        with pytest.raises(ReplicaError, match="not finished"):
            draft.publish(point_meta("p2"))
        draft.abandon()
        lab.verify_files()
        filler = tmp_path / "filler"
        draft = lab.store.begin_point("p2", (NewDisk("vda", MIB, True),))
        draft.layer("vda").finish()
        draft.digest_path("vda").touch()
        fill(filler)
        with pytest.raises(DatastoreError, match="the datastore is full"):
            draft.publish(point_meta("p2"))
        filler.unlink()
        draft.abandon()
        lab.verify()
        lab.verify_files()


def stop_merge(lab: Lab, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Retire the oldest of three points, but break off at a fault point."""
    three_points(lab)
    with monkeypatch.context() as patch:
        patch.setenv("UNDERSTUDY_FAULT", f"retire.{place}=error")
        with pytest.raises(UnderstudyError, match="asked for an error"):
            lab.store.retire(("p1",))


@pytest.mark.parametrize("place", ["recorded", "committed"])
def test_wrong_counts_that_a_broken_merge_left_are_mended_first(lab: Lab, monkeypatch: pytest.MonkeyPatch,
                                                                place: str) -> None:
    stop_merge(lab, monkeypatch, place)
    base = lab.store.image("p2", "vda").with_name("vda-p1.qcow2")
    with base.open("r+b") as file:
        file.seek(48)
        file.seek(int.from_bytes(file.read(8), "big"))  # the refcount table
        file.seek(int.from_bytes(file.read(8), "big") + 2 * 5)
        file.write(bytes(2 * 6))  # six clusters in use count as free
    lab.verify()
    lab.store.sweep()
    lab.verify()
    lab.verify_files()


def test_a_merge_does_not_go_on_over_impossible_tables(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_merge(lab, monkeypatch, "recorded")
    base = lab.store.image("p2", "vda").with_name("vda-p1.qcow2")
    with base.open("r+b") as file:
        file.seek(2 * CLUSTER)
        file.write((1 << 40).to_bytes(8, "big"))
    before = lab.store.load()
    with pytest.raises(ReplicaError, match="impossible table entry"):
        lab.store.sweep()
    assert lab.store.load() == before


def test_qemu_img_that_fails_is_reported_with_its_words(lab: Lab, monkeypatch: pytest.MonkeyPatch,
                                                        tmp_path: Path) -> None:
    three_points(lab)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatastoreError, match="qemu-img cannot be run"):
        lab.store.retire(("p1",))
    fake = tmp_path / "qemu-img"
    fake.write_text("#!/bin/sh\necho 'qemu-img: broken today' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(ReplicaError, match="broken today"):
        lab.store.sweep()
    monkeypatch.undo()
    lab.verify()
    lab.store.sweep()
    lab.verify()
    lab.verify_files()


def test_the_facts_of_a_merged_layer_are_those_of_qemu(lab: Lab) -> None:
    three_points(lab)
    lab.store.retire(("p1", "p2"))
    info = json.loads(qemu("qemu-img", "info", "--output=json", lab.store.image("p3", "vda")))
    assert info["virtual-size"] == 20 * CLUSTER
    assert "backing-filename" not in info
    assert content(lab.store.image("p3", "vda")) == lab.images["p3"]["vda"]
