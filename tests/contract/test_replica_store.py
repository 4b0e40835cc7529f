"""The promises of :class:`understudy.storage.ReplicaStore`, tried on every store kind."""

from __future__ import annotations

import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.storage.snapshot_lab import served_leaf
from understudy.errors import DatastoreError, Fenced, NotFound, Refused, ReplicaError, UnderstudyError, UsageError
from understudy.model.extent import Extent
from understudy.model.job import LAYERS, SNAPSHOTS
from understudy.model.replica import Baseline, Consistency, Conversion, ReplicaIdentity, ReplicaState
from understudy.storage import LayerWriter, PointDraft, ReplicaStore, list_replicas, open_store
from understudy.storage.snapshots.draft import SnapshotDraft
from understudy.storage.values import KeptLayer, NewDisk, PointMeta

#: Kinds whose disks are files are tried at more, because there is more that they can do.
LAYERED, KINDS = (LAYERS,), (LAYERS, SNAPSHOTS)
NAME = "web 1 – Zürich_replica"
IDENTITY = ReplicaIdentity("id-1", NAME, "7", "nightly", "web 1 – Zürich", "source-uuid", "domain-uuid")
SIZE = 3 * 65536 + 512


def meta(point: str) -> PointMeta:
    return PointMeta(point, "2026-01-02T03:04:05Z", Consistency.FILESYSTEM, 4, 1 << 20, Baseline("cp", ("vda",)),
                     {"qemu": "7.2"}, f"<domain>{point} ü</domain>")


#: Where the leaves of the running test are served that a store without images writes to.
_serving: list[tuple[ExitStack, Path]] = []


@pytest.fixture(autouse=True)
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leaves are served until the end of the test."""
    with ExitStack() as stack:
        _serving.append((stack, tmp_path_factory.mktemp("leaves")))
        yield
        _serving.pop()


def layer_of(draft: PointDraft, disk: str) -> LayerWriter:
    """The writer of a disk; its leaf is attached first, if it is one of a store without images."""
    if isinstance(draft, SnapshotDraft):
        with suppress(ReplicaError):
            return draft.layer(disk)
        stack, directory = _serving[-1]
        leaf = stack.enter_context(served_leaf(directory / f"{uuid.uuid4().hex}.raw", SIZE))
        draft.attach(disk, leaf.socket, "disk", lambda run: (run,))
    return draft.layer(disk)


def publish(store: ReplicaStore, point: str, fill: bytes = b"", chained: bool = False, disk: str = "vda") -> None:
    draft = store.begin_point(point, (NewDisk(disk, SIZE, chained, "/images/web.qcow2"),))
    if fill:
        layer_of(draft, disk).write_at(0, fill * SIZE)
    else:
        layer_of(draft, disk).zero(65536, 65536)
    layer_of(draft, disk).finish()
    draft.digest_path(disk).write_bytes(point.encode())
    draft.publish(meta(point))


def shown(store: ReplicaStore, point: str, disk: str = "vda") -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", store.image(point, disk), raw], check=True)
        return raw.read_bytes()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LAYERED)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReplicaStore]:
    """A store whose disks are files."""
    yield from _made(str(request.param), tmp_path)


@pytest.fixture
def any_store(kind: str, tmp_path: Path) -> Iterator[ReplicaStore]:
    """A store of any kind."""
    yield from _made(kind, tmp_path)


def _made(kind: str, directory: Path) -> Iterator[ReplicaStore]:
    made = open_store(kind, directory, NAME)
    with made.lock(1):
        made.create(IDENTITY)
        yield made


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown kind"):
        open_store("floppy", tmp_path, NAME)
    with pytest.raises(UsageError, match="unknown kind"):
        list_replicas("floppy", tmp_path)


def test_a_replica_that_was_not_made_is_not_there(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path, NAME)
    assert not store.exists()
    assert store.last_attempt() == 0
    assert list_replicas(kind, tmp_path) == ()
    with pytest.raises(NotFound):
        store.load()
    with store.lock(3):
        assert not store.exists()
        assert store.sweep() == []
    assert store.last_attempt() == 3
    assert list_replicas(kind, tmp_path) == ()


def test_a_missing_datastore_is_said(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path / "gone", NAME)
    with pytest.raises(DatastoreError, match="does not exist"):
        store.load()
    with pytest.raises(DatastoreError, match="does not exist"), store.lock(1):
        pass
    with pytest.raises(DatastoreError, match="no such file"):
        list_replicas(kind, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_replicas_are_listed_by_name(kind: str, tmp_path: Path) -> None:
    names = ("web", "a/b", "..", "a b", "日本語", "100%")
    for name in names:
        store = open_store(kind, tmp_path, name)
        with store.lock(1):
            store.create(replace(IDENTITY, name=name))
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "file").touch()
    assert list_replicas(kind, tmp_path) == tuple(sorted(names))
    assert not (tmp_path.parent / "replica.json").exists()


def test_making_a_replica_again_changes_nothing_and_another_is_refused(any_store: ReplicaStore) -> None:
    publish(any_store, "p1")
    before = any_store.load()
    assert any_store.create(IDENTITY) == before
    with pytest.raises(Refused, match="holds a replica of VM"):
        any_store.create(replace(IDENTITY, id="id-2"))
    assert any_store.load() == before


def test_a_replica_that_lost_its_record_is_not_made_anew(store: ReplicaStore) -> None:
    publish(store, "p1")
    store.image("p1", "vda").parent.parent.joinpath("replica.json").unlink()
    with pytest.raises(Refused, match="without a record"):
        store.create(IDENTITY)
    assert store.sweep() == []


def test_a_published_point_is_as_it_was_written(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    publish(store, "p2", chained=True)
    first, second = store.load().points
    assert (first.id, first.created_at, first.consistency, first.session) == (
        "p1", "2026-01-02T03:04:05Z", Consistency.FILESYSTEM, 4)
    assert (first.baseline, first.versions, first.block_size) == (Baseline("cp", ("vda",)), {"qemu": "7.2"}, 1 << 20)
    assert (first.disks[0].size, first.disks[0].source_path, first.disks[0].backing) == (SIZE, "/images/web.qcow2", "")
    assert second.disks[0].backing == first.disks[0].layer
    assert store.image("p1", "vda").is_absolute()
    assert store.digest_path("p2", "vda").read_bytes() == b"p2"
    assert store.definition("p2") == "<domain>p2 ü</domain>"
    assert store.damage("p1") == store.damage("p2") == []
    whole = b"\1" * SIZE
    assert shown(store, "p1") == whole
    assert shown(store, "p2") == whole[:65536] + bytes(65536) + whole[131072:]


def test_a_draft_is_seen_by_nobody_until_published(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    before = store.load()
    draft = store.begin_point("p2", (NewDisk("vda", SIZE, True), NewDisk("vdb", SIZE, False)))
    layer_of(draft, "vda").write_at(0, b"\2" * SIZE)
    assert store.load() == before
    assert draft.base_digest_path("vda") == store.digest_path("p1", "vda")
    assert draft.base_digest_path("vdb") is None
    draft.abandon()
    draft.abandon()
    assert store.load() == before
    assert store.sweep() == []
    assert shown(store, "p1") == b"\1" * SIZE


def test_the_base_digest_is_none_when_its_file_is_lost(any_store: ReplicaStore) -> None:
    publish(any_store, "p1")
    any_store.digest_path("p1", "vda").unlink()
    draft = any_store.begin_point("p2", (NewDisk("vda", SIZE, True),))
    assert draft.base_digest_path("vda") is None
    draft.abandon()


def test_abandoning_after_publish_does_nothing(any_store: ReplicaStore) -> None:
    draft = any_store.begin_point("p1", (NewDisk("vda", SIZE, False),))
    layer_of(draft, "vda").finish()
    draft.digest_path("vda").touch()
    draft.publish(meta("p1"))
    draft.abandon()
    assert any_store.damage("p1") == []
    with pytest.raises(ReplicaError):
        draft.publish(meta("p1"))


@pytest.mark.parametrize("place", ["publish.layers_durable", "publish.renamed", "publish.recorded"])
def test_a_publish_that_failed_shows_the_point_wholly_or_not_at_all(
        any_store: ReplicaStore, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    draft = any_store.begin_point("p1", (NewDisk("vda", SIZE, False),))
    layer_of(draft, "vda").finish()
    draft.digest_path("vda").touch()
    monkeypatch.setenv("UNDERSTUDY_FAULT", f"{place}=error")
    with pytest.raises(UnderstudyError, match="asked for an error"):
        draft.publish(meta("p1"))
    monkeypatch.delenv("UNDERSTUDY_FAULT")
    draft.abandon()
    assert [point.id for point in any_store.load().points] == (["p1"] if place == "publish.recorded" else [])
    assert all(any_store.damage(point.id) == [] for point in any_store.load().points)
    assert any_store.sweep() == []


def test_an_unfinished_layer_or_a_missing_digest_is_not_published(any_store: ReplicaStore) -> None:
    draft = any_store.begin_point("p1", (NewDisk("vda", SIZE, False),))
    with pytest.raises(ReplicaError, match="not finished"):
        draft.publish(meta("p1"))
    layer_of(draft, "vda").finish()
    with pytest.raises(ReplicaError, match="digest file of disk 'vda' is missing"):
        draft.publish(meta("p1"))
    draft.digest_path("vda").touch()
    with pytest.raises(ReplicaError, match="point 'p2'"):
        draft.publish(meta("p2"))
    with pytest.raises(NotFound):
        layer_of(draft, "vdb")
    assert any_store.load().points == ()
    draft.publish(meta("p1"))


@pytest.mark.parametrize(("disks", "why"), [
    ((), "needs disks"), ((NewDisk("vda", SIZE, False), NewDisk("vda", SIZE, False)), "a name of its own"),
    ((NewDisk("vdb", SIZE, True),), "has no disk 'vdb'"), ((NewDisk("vda", 65536, True),), "shrank"),
    ((NewDisk("vdb", 65536, False), NewDisk("vda", 1, False)), "cannot be kept")])
def test_impossible_points_are_refused_before_anything_is_made(
        store: ReplicaStore, disks: tuple[NewDisk, ...], why: str) -> None:
    publish(store, "p1")
    with pytest.raises(ReplicaError, match=why):
        store.begin_point("p2", disks)
    assert store.sweep() == []
    with pytest.raises(ReplicaError, match="exists already"):
        store.begin_point("p1", (NewDisk("vda", SIZE, False),))
    with pytest.raises(ReplicaError, match="the id must"):
        store.begin_point("../p2", (NewDisk("vda", SIZE, False),))
    assert store.damage("p1") == []


def test_a_layer_is_not_laid_on_a_damaged_one(store: ReplicaStore) -> None:
    publish(store, "p1")
    with store.image("p1", "vda").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ReplicaError, match="damaged"):
        store.begin_point("p2", (NewDisk("vda", SIZE, True),))


def test_one_point_is_made_at_a_time(any_store: ReplicaStore) -> None:
    draft = any_store.begin_point("p1", (NewDisk("vda", SIZE, False),))
    for act in (lambda: any_store.begin_point("p2", (NewDisk("vda", SIZE, False),)), any_store.sweep, any_store.remove,
                lambda: any_store.retire(())):
        with pytest.raises(ReplicaError, match="in the making"):
            act()
    draft.abandon()
    publish(any_store, "p2")


PART = 65536
MARKED = NewDisk("vda", SIZE, True, mark="job 7")


def half_made(store: ReplicaStore, point: str, disk: NewDisk = MARKED, fill: bytes = b"\2") -> PointDraft:
    """A draft with one part checkpointed and complete, one checkpointed, and one that no checkpoint knows."""
    draft = store.begin_point(point, (disk,))
    draft.digest_path(disk.name).write_bytes(b"digests for " + point.encode())
    layer_of(draft, disk.name).write_at(0, fill * PART)
    layer_of(draft, disk.name).checkpoint([Extent(0, PART)])
    layer_of(draft, disk.name).write_at(PART, fill * PART)
    layer_of(draft, disk.name).checkpoint(())
    layer_of(draft, disk.name).write_at(2 * PART, fill * PART)
    return draft


def complete(draft: PointDraft, point: str, disk: str = "vda", fill: bytes = b"\3") -> None:
    """Write what is touched and not complete, then publish."""
    kept = draft.kept(disk)
    for item in kept.touched:
        for start in range(item.start, item.end, PART):
            if not any(done.start <= start < done.end for done in kept.complete):
                layer_of(draft, disk).write_at(start, fill * min(PART, SIZE - start))
    layer_of(draft, disk).finish()
    draft.digest_path(disk).write_bytes(point.encode())
    draft.publish(meta(point))


def test_a_draft_that_was_kept_is_continued_by_the_next_point(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    half_made(store, "p2").keep()
    assert store.sweep() == []
    draft = store.begin_point("p3", (MARKED,))
    kept = draft.kept("vda")
    assert kept.complete == (Extent(0, PART),)
    assert kept.touched == (Extent(0, 3 * PART),)  # the last part was written, though it is dropped
    assert kept.digests is not None
    assert kept.digests.read_bytes() == b"digests for p2"
    assert kept.digests != draft.digest_path("vda")
    complete(draft, "p3")
    assert shown(store, "p3") == b"\2" * PART + b"\3" * 2 * PART + b"\1" * 512
    assert shown(store, "p1") == b"\1" * SIZE
    assert store.damage("p3") == store.sweep() == []
    assert not kept.digests.exists()


def test_a_layer_that_is_continued_twice_is_never_called_complete_by_its_first_writer(store: ReplicaStore) -> None:
    half_made(store, "p1", replace(MARKED, chained=False)).keep()
    draft = store.begin_point("p2", (replace(MARKED, chained=False),))
    layer_of(draft, "vda").write_at(0, b"\5" * PART)
    layer_of(draft, "vda").checkpoint(())
    draft.keep()
    kept = store.begin_point("p3", (replace(MARKED, chained=False),)).kept("vda")
    assert kept == KeptLayer((Extent(0, 2 * PART),), (), None)


@pytest.mark.parametrize("kind", LAYERED, indirect=True)
def test_a_draft_whose_process_died_is_resumed(kind: str, tmp_path: Path) -> None:
    dead, store = open_store(kind, tmp_path, NAME), open_store(kind, tmp_path, NAME)
    with dead.lock(1):
        dead.create(IDENTITY)
        publish(dead, "p1", b"\1")
        half_made(dead, "p2")
    with store.lock(1):
        assert store.sweep() == []
        draft = store.resume_point("p2", (MARKED,))
        kept = draft.kept("vda")
        assert (kept.touched, kept.complete) == ((Extent(0, 3 * PART),), (Extent(0, PART),))
        assert kept.digests == draft.digest_path("vda")
        layer_of(draft, "vda").checkpoint([Extent(PART, PART)])
        draft.keep()
        draft = store.resume_point("p2", (MARKED,))
        assert draft.kept("vda").complete == (Extent(0, 2 * PART),)
        complete(draft, "p2")
        assert shown(store, "p2") == b"\2" * 2 * PART + b"\1" * (SIZE - 2 * PART)
        assert store.sweep() == []


def test_a_new_draft_keeps_nothing(store: ReplicaStore) -> None:
    for begin in (store.begin_point, store.resume_point):
        draft = begin("p1", (NewDisk("vda", SIZE, False, mark="m"),))
        assert draft.kept("vda") == KeptLayer()
        with pytest.raises(NotFound):
            draft.kept("vdb")
        draft.keep()
        draft.keep()
        draft.abandon()
    assert store.sweep() == []


def test_a_kept_draft_is_closed(store: ReplicaStore) -> None:
    publish(store, "p1")
    draft = half_made(store, "p2")
    draft.keep()
    with pytest.raises(ReplicaError, match="closed"):
        layer_of(draft, "vda").write_at(0, bytes(PART))
    with pytest.raises(ReplicaError, match="kept"):
        draft.publish(meta("p2"))
    draft.abandon()
    assert store.begin_point("p3", (MARKED,)).kept("vda").touched


@pytest.mark.parametrize("other", [
    replace(MARKED, mark="job 8"), replace(MARKED, mark=""), replace(MARKED, size=SIZE + 512),
    replace(MARKED, chained=False), replace(MARKED, name="vdb", chained=False)])
def test_a_layer_is_continued_only_for_the_same_disk_and_mark(store: ReplicaStore, other: NewDisk) -> None:
    publish(store, "p1")
    half_made(store, "p2").keep()
    draft = store.begin_point("p3", (other,))
    assert draft.kept(other.name) == KeptLayer()
    draft.abandon()
    assert store.sweep() == []
    assert store.begin_point("p4", (MARKED,)).kept("vda") == KeptLayer()  # p3 had removed it


def test_a_layer_is_not_continued_on_another_point(store: ReplicaStore) -> None:
    publish(store, "p1")
    half_made(store, "p2").keep()
    draft = store.begin_point("p3", (NewDisk("vdb", SIZE, False),))
    layer_of(draft, "vdb").finish()
    draft.digest_path("vdb").touch()
    draft.publish(meta("p3"))
    publish(store, "p4")
    assert store.sweep() == []
    assert store.begin_point("p5", (MARKED,)).kept("vda") == KeptLayer()


@pytest.mark.parametrize("kind", LAYERED, indirect=True)
def test_a_disk_without_a_mark_is_not_kept(kind: str, tmp_path: Path) -> None:
    dead, store = open_store(kind, tmp_path, NAME), open_store(kind, tmp_path, NAME)
    with dead.lock(1):
        dead.create(IDENTITY)
        publish(dead, "p1")
        half_made(dead, "p2", replace(MARKED, mark="")).keep()
        assert dead.sweep() == []
        half_made(dead, "p2", replace(MARKED, mark=""))
    with store.lock(1):
        assert len(store.sweep()) == 3


def test_of_several_layers_the_one_with_the_most_is_continued(store: ReplicaStore) -> None:
    publish(store, "p1")
    small = store.begin_point("p2", (MARKED,))
    layer_of(small, "vda").zero(0, PART)
    layer_of(small, "vda").checkpoint(())
    root = small.digest_path("vda").parent.parent
    saved = {path: path.read_bytes() for path in root.rglob("*.partial")}
    small.abandon()
    half_made(store, "p3").keep()
    for path, data in saved.items():
        path.write_bytes(data)
    assert store.sweep() == []
    draft = store.begin_point("p4", (MARKED,))
    assert draft.kept("vda").touched == (Extent(0, 3 * PART),)
    assert [path for path in root.rglob("*.partial") if "p4" not in path.name] == []


def test_some_disks_are_continued_and_others_begin_anew(store: ReplicaStore) -> None:
    disks = (NewDisk("vda", SIZE, False, mark="m"), NewDisk("vdb", SIZE, False, mark="m"),
             NewDisk("vdc", SIZE, False))
    draft = store.begin_point("p1", disks)
    for disk in ("vda", "vdc"):
        layer_of(draft, disk).write_at(0, b"\1" * PART)
        layer_of(draft, disk).checkpoint([Extent(0, PART)])
    draft.keep()
    draft = store.begin_point("p2", disks)
    whole = KeptLayer((Extent(0, PART),), (Extent(0, PART),), None)
    assert [draft.kept(disk.name) for disk in disks] == [whole, KeptLayer(), KeptLayer()]


def test_abandoning_removes_what_was_continued_too(store: ReplicaStore) -> None:
    publish(store, "p1")
    half_made(store, "p2").keep()
    store.begin_point("p3", (MARKED,)).abandon()
    assert store.sweep() == []
    assert store.begin_point("p4", (MARKED,)).kept("vda") == KeptLayer()


def test_a_resumed_draft_with_another_mark_begins_anew(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    half_made(store, "p2").keep()
    draft = store.resume_point("p2", (replace(MARKED, mark="other"),))
    assert draft.kept("vda") == KeptLayer()
    assert not draft.digest_path("vda").exists()
    complete(draft, "p2")
    assert shown(store, "p2") == b"\1" * SIZE


def test_a_kept_point_id_cannot_be_begun_again_nor_a_published_one_resumed(store: ReplicaStore) -> None:
    publish(store, "p1")
    half_made(store, "p2").keep()
    with pytest.raises(ReplicaError, match="exists already"):
        store.begin_point("p2", (MARKED,))
    complete(store.resume_point("p2", (MARKED,)), "p2")
    with pytest.raises(ReplicaError, match="exists already"):
        store.resume_point("p2", (MARKED,))


def test_an_open_draft_is_disturbed_by_nothing(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    draft = half_made(store, "p2")
    for act in (store.sweep, lambda: store.retire(()), lambda: store.resume_point("p2", (MARKED,)),
                lambda: store.resume_point("p3", (MARKED,))):
        with pytest.raises(ReplicaError, match="in the making"):
            act()
    store.bind_head("p1")
    layer_of(draft, "vda").finish()
    draft.publish(meta("p2"))
    assert shown(store, "p2") == b"\2" * 3 * PART + b"\1" * 512


def test_damage_is_found_in_the_whole_chain(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    publish(store, "p2", chained=True)
    publish(store, "p3", b"\3")
    lower = store.image("p1", "vda")
    whole = lower.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"\0" * len(whole)):
        lower.write_bytes(damaged)
        assert len(store.damage("p1")) == len(store.damage("p2")) == 1
        assert store.damage("p3") == []
    lower.unlink()
    assert store.damage("p2") == [f"disk vda: layer {lower.name}: missing"]
    with pytest.raises(NotFound):
        store.damage("nope")


def test_unknown_points_and_disks_are_not_found(any_store: ReplicaStore) -> None:
    publish(any_store, "p1")
    for act in (lambda: any_store.image("p9", "vda"), lambda: any_store.image("p1", "vdz"),
                lambda: any_store.definition("p9"), lambda: any_store.digest_path("p9", "vda"),
                lambda: any_store.bind_head("p9")):
        with pytest.raises(NotFound):
            act()


def test_one_owner_at_a_time_and_no_older_one(kind: str, tmp_path: Path) -> None:
    first, second = open_store(kind, tmp_path, NAME), open_store(kind, tmp_path, NAME)
    with first.lock(5):
        with pytest.raises(Fenced, match="another session"), second.lock(6):
            pass
        with pytest.raises(Fenced), first.lock(5):
            pass
        assert second.last_attempt() == 5
    with pytest.raises(Fenced, match="attempt 4 is older than attempt 5"), second.lock(4):
        pass
    with second.lock(5), pytest.raises(Fenced), first.lock(9):
        pass
    with second.lock(7):
        pass
    assert first.last_attempt() == 7


def test_nothing_changes_without_the_lock(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path, NAME)
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1")
    for act in (store.sweep, store.remove, lambda: store.retire(()), lambda: store.bind_head("p1"),
                lambda: store.create(IDENTITY), lambda: store.set_state(ReplicaState.FAILOVER),
                lambda: store.set_identity(IDENTITY), lambda: store.begin_point("p2", (NewDisk("vda", SIZE, True),)),
                lambda: store.resume_point("p2", (NewDisk("vda", SIZE, True),))):
        with pytest.raises(ReplicaError, match="lock is not held"):
            act()
    assert store.damage("p1") == []


def test_retired_points_are_gone_and_the_others_as_before(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    publish(store, "p2", chained=True)
    publish(store, "p3", chained=True)
    before = shown(store, "p2"), shown(store, "p3")
    replica = store.retire(("p1",))
    assert [point.id for point in replica.points] == ["p2", "p3"]
    assert replica == store.load()
    assert (shown(store, "p2"), shown(store, "p3")) == before
    assert store.digest_path("p2", "vda").read_bytes() == b"p2"
    with pytest.raises(Refused):
        store.retire(("p3",))
    with pytest.raises(Refused, match="newest"):
        store.retire(("p2", "p3"))
    assert store.sweep() == []


def test_the_head_shows_the_point_and_knows_when_it_was_written(store: ReplicaStore) -> None:
    assert store.head().point == ""
    publish(store, "p1", b"\1")
    publish(store, "p2", chained=True)
    facts = store.bind_head("p1")
    assert facts == store.head()
    assert (facts.point, facts.empty, list(facts.files)) == ("p1", True, ["vda"])
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 512", facts.files["vda"]], check=True,
                   capture_output=True)
    assert not store.head().empty
    assert shown(store, "p1") == b"\1" * SIZE
    assert store.bind_head("p2").empty
    assert store.load().head_point == "p2"
    Path(store.head().files["vda"]).unlink()
    assert (store.head().point, store.head().files) == ("", {})


def test_what_was_done_to_a_head_is_remembered_until_there_is_a_new_one(store: ReplicaStore) -> None:
    publish(store, "p1", b"\1")
    with pytest.raises(Refused, match="it has no head"):
        store.set_conversion(Conversion.VIRTIO)
    assert store.bind_head("p1").conversion is Conversion.NONE
    for conversion in (Conversion.UNFINISHED, Conversion.VIRTIO):
        assert store.set_conversion(conversion).conversion is conversion
        assert store.head().conversion is store.load().conversion is conversion
    publish(store, "p2", chained=True)
    assert store.head().conversion is Conversion.VIRTIO
    assert store.bind_head("p1").conversion is Conversion.NONE
    assert store.load().conversion is Conversion.NONE


def test_a_new_head_drops_disks_that_the_point_has_not(store: ReplicaStore) -> None:
    publish(store, "p1", disk="vda")
    publish(store, "p2", disk="vdb")
    old = store.bind_head("p1").files["vda"]
    assert list(store.bind_head("p2").files) == ["vdb"]
    assert not Path(old).exists()


def test_state_and_identity_are_recorded(any_store: ReplicaStore) -> None:
    assert any_store.set_state(ReplicaState.FAILOVER).state == ReplicaState.FAILOVER
    other = replace(IDENTITY, job_name="weekly", id="id-9")
    assert any_store.set_identity(other).identity == other
    assert (any_store.load().state, any_store.load().identity) == (ReplicaState.FAILOVER, other)


def test_removal_leaves_nothing_but_what_is_not_ours(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path, NAME)
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1")
        store.bind_head("p1")
        store.remove()
        assert not store.exists()
    assert list(tmp_path.iterdir()) == []
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1")
        foreign = store.digest_path("p1", "vda").parent / "notes.txt"
        foreign.touch()
        with pytest.raises(ReplicaError, match=r"notes\.txt is not one of them"):
            store.remove()
        assert not store.exists()
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == [foreign]


def test_a_lost_definition_is_said(store: ReplicaStore) -> None:
    publish(store, "p1")
    for path in store.image("p1", "vda").parent.parent.rglob("*.xml"):
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
    with pytest.raises(ReplicaError, match="missing"):
        store.definition("p1")
