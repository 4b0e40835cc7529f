"""The store of snapshots: what it records, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.errors import DatastoreError, Fenced, NotFound, Refused, ReplicaError
from understudy.model.exclusion import Exclusion, pack
from understudy.model.extent import Extent
from understudy.model.job import SNAPSHOTS
from understudy.model.replica import ReplicaState
from understudy.storage import list_replicas, open_store
from understudy.storage.snapshots.store import SnapshotStore
from understudy.storage.values import HeadFacts, KeptLayer, NewDisk

from .snapshot_lab import DEFINITION, IDENTITY, NAME, SIZE, complete, nothing, point_meta, publish, served_leaf

NEW, CHAINED = NewDisk("vda", SIZE, False, "[ds] web/web.vmdk"), NewDisk("vda", SIZE, True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ds").mkdir()
    return tmp_path


@pytest.fixture
def store(place: Path) -> Iterator[SnapshotStore]:
    made = open_store(SNAPSHOTS, place / "ds", NAME)
    assert isinstance(made, SnapshotStore)
    with made.lock(1):
        made.create(IDENTITY)
        yield made


def files(place: Path) -> dict[str, bytes]:
    """Every file of the replica but the lock, by its path."""
    root = place / "ds" / NAME
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and path.name != ".lock"}


def test_a_published_point_is_recorded_as_what_it_is(store: SnapshotStore, place: Path) -> None:
    first = publish(store, place, "p1", NEW)
    second = publish(store, place, "p2", CHAINED)
    (disk,) = first.disks
    assert (disk.name, disk.size, disk.layer, disk.backing, disk.digest, disk.file_bytes, disk.source_path) == (
        "vda", SIZE, "vda-p1.snapshot", "", "vda-p1.digest", SIZE, "[ds] web/web.vmdk")
    assert second.disks[0].backing == "vda-p1.snapshot"
    assert store.load().points == (first, second)
    assert store.definition("p1") == DEFINITION
    assert store.digest_path("p1", "vda").read_bytes() == b"digests"
    assert (store.damage("p1"), store.losses("p1")) == ([], [])
    assert store.leftovers().unneeded == ()
    assert list_replicas(SNAPSHOTS, place / "ds") == (NAME,)


def test_no_file_of_a_published_point_ever_changes_and_none_has_disk_data(store: SnapshotStore, place: Path) -> None:
    """S1, as far as it is ours: the platform keeps what is below a snapshot."""
    publish(store, place, "p1", NEW)
    before = {name: content for name, content in files(place).items() if not name.startswith("replica.json")}
    assert sorted(before) == ["digests/vda-p1.digest", "points/p1.json", "points/p1.xml"]
    publish(store, place, "p2", CHAINED)
    with pytest.raises(ReplicaError, match="exists already"):
        store.begin_point("p1", (NEW,))
    draft = complete(store.begin_point("p3", (NEW,)), place, (NEW,))
    draft.abandon()
    store.sweep()
    after = files(place)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "p3" in name]


def test_a_point_is_seen_when_it_is_published_and_not_before(store: SnapshotStore, place: Path) -> None:
    """S2."""
    draft = complete(store.begin_point("p1", (NEW,)), place, (NEW,))
    assert store.load().points == ()
    assert all(name.endswith(".partial") or name.startswith("replica.json") for name in files(place))
    draft.publish(point_meta("p1"))
    assert [point.id for point in store.load().points] == ["p1"]
    assert not [name for name in files(place) if name.endswith(".partial")]
    draft.abandon()
    assert store.losses("p1") == []


def test_what_is_not_complete_is_not_published(store: SnapshotStore, place: Path) -> None:
    draft = store.begin_point("p1", (NEW,))
    with pytest.raises(ReplicaError, match="not known at which leaf"):
        draft.layer("vda")
    with pytest.raises(ReplicaError, match="is not finished"):
        draft.publish(point_meta("p1"))
    with served_leaf(place / "leaf", SIZE) as leaf:
        draft.attach("vda", leaf.socket, "disk", nothing)
        with pytest.raises(ReplicaError, match="has its leaf already"):
            draft.attach("vda", leaf.socket, "disk", nothing)
        with pytest.raises(ReplicaError, match="is not finished"):
            draft.publish(point_meta("p1"))
        draft.layer("vda").finish()
    with pytest.raises(ReplicaError, match="digest file"):
        draft.publish(point_meta("p1"))
    draft.digest_path("vda").write_bytes(b"digests")
    with pytest.raises(ReplicaError, match="those of point 'p2'"):
        draft.publish(point_meta("p2"))
    with pytest.raises(ReplicaError, match="UEFI variables"):
        draft.publish(replace(point_meta("p1"), nvram="AAAA"))
    draft.publish(point_meta("p1"))
    with pytest.raises(ReplicaError, match="already"):
        draft.publish(point_meta("p1"))


@pytest.mark.parametrize("end", ["keep", "abandon"])
def test_nothing_of_a_draft_is_ever_continued(store: SnapshotStore, place: Path, end: str) -> None:
    marked = NewDisk("vda", SIZE, False, mark="m")
    draft = complete(store.begin_point("p1", (marked,)), place, (marked,))
    assert draft.kept("vda") == KeptLayer()
    getattr(draft, end)()
    assert sorted(files(place)) == ["replica.json"]
    assert store.begin_point("p2", (marked,)).kept("vda") == KeptLayer()


def test_a_draft_that_lost_its_process_is_begun_anew(store: SnapshotStore, place: Path) -> None:
    complete(store.begin_point("p1", (NEW,)), place, (NEW,))
    again = SnapshotStore(place / "ds", NAME)
    again._locked = True
    draft = again.resume_point("p1", (NEW,))
    assert draft.kept("vda") == KeptLayer()
    assert sorted(files(place)) == ["replica.json"]


def test_a_disk_of_another_size_or_without_a_point_below_is_not_chained(store: SnapshotStore, place: Path) -> None:
    with pytest.raises(ReplicaError, match="no disk 'vda' to lie on"):
        store.begin_point("p1", (CHAINED,))
    for size in (0, 513):
        with pytest.raises(ReplicaError, match="cannot be kept"):
            store.begin_point("p1", (NewDisk("vda", size, False),))
    publish(store, place, "p1", NEW)
    for size in (SIZE - 512, SIZE + 512):
        with pytest.raises(ReplicaError, match="a file of its own"):
            store.begin_point("p2", (NewDisk("vda", size, True),))
    assert store.begin_point("p2", (NewDisk("vda", SIZE + 512, False),)).base_digest_path("vda") is None


def test_what_the_disks_leave_out_is_kept_with_each_point(store: SnapshotStore, place: Path) -> None:
    """S10."""
    first = Exclusion("vda", pack((Extent(65536, 65536),)), {"swap": 65536}, {})
    publish(store, place, "p1", NEW, meta=replace(point_meta("p1"), exclusions=(first,)))
    publish(store, place, "p2", CHAINED)
    assert store.exclusions("p1") == (first,)
    assert store.exclusions("p2") == ()
    (place / "ds" / NAME / "points" / "p1.excluded").unlink()
    assert store.losses("p1")
    with pytest.raises(ReplicaError, match="is missing"):
        store.exclusions("p1")


def test_an_older_attempt_and_a_second_owner_are_fenced(store: SnapshotStore, place: Path) -> None:
    """S11."""
    other = SnapshotStore(place / "ds", NAME)
    with pytest.raises(Fenced), other.lock(2):
        pass
    assert store.last_attempt() == 1


def test_an_attempt_that_is_older_than_one_seen_is_fenced(place: Path) -> None:
    store = SnapshotStore(place / "ds", NAME)
    with store.lock(7):
        store.create(IDENTITY)
    with pytest.raises(Fenced), store.lock(6):
        pass
    with pytest.raises(ReplicaError, match="lock is not held"):
        store.set_state(ReplicaState.FAILOVER)


def test_a_publish_whose_lock_was_lost_is_refused(place: Path) -> None:
    store = SnapshotStore(place / "ds", NAME)
    with store.lock(1):
        store.create(IDENTITY)
        draft = complete(store.begin_point("p1", (NEW,)), place, (NEW,))
    with pytest.raises(ReplicaError, match="lock is not held"):
        draft.publish(point_meta("p1"))
    assert store.load().points == ()


def test_any_points_can_be_forgotten_and_their_files_go(store: SnapshotStore, place: Path) -> None:
    for point in ("p1", "p2", "p3"):
        publish(store, place, point, NEW if point == "p1" else CHAINED)
    store.bind_head("p3")
    after = store.forget(("p2", "p3", "never"))
    assert [point.id for point in after.points] == ["p1"]
    assert store.head() == HeadFacts("", True, {})
    assert sorted(name for name in files(place) if "/" in name) == [
        "digests/vda-p1.digest", "points/p1.json", "points/p1.xml"]
    assert store.forget(("p2",)) == after
    assert publish(store, place, "p4", CHAINED).disks[0].backing == "vda-p1.snapshot"


def test_the_oldest_points_are_retired_and_never_the_newest_or_one_that_is_in_use(store: SnapshotStore,
                                                                                 place: Path) -> None:
    for point in ("p1", "p2", "p3"):
        publish(store, place, point, NEW if point == "p1" else CHAINED)
    store.bind_head("p2")
    for points in (("p2",), ("p1", "p2"), ("p1", "p2", "p3")):
        with pytest.raises(Refused):
            store.retire(points)
    with store.verifying(), pytest.raises(Refused, match="verified"):
        store.retire(("p1",))
    assert [point.id for point in store.retire(("p1",)).points] == ["p2", "p3"]
    assert store.load().points[0].disks[0].backing == ""
    assert not [name for name in files(place) if "p1" in name and "/" in name]


def test_damage_of_one_point_is_told_of_no_other(store: SnapshotStore, place: Path) -> None:
    publish(store, place, "p1", NEW)
    publish(store, place, "p2", CHAINED)
    store.change_health("p1", "vda", lambda known: replace(known, bad=(Extent(0, 4096),), bad_blocks=1))
    assert [(item.point, item.bad_blocks) for item in store.health()] == [("p1", 1)]


def test_there_are_no_images_and_nothing_is_made_again_from_files(store: SnapshotStore, place: Path) -> None:
    publish(store, place, "p1", NEW)
    assert not store.holds_images
    with pytest.raises(Refused, match="snapshot of the replica VM"):
        store.image("p1", "vda")
    with pytest.raises(NotFound):
        store.image("p1", "vdb")
    with pytest.raises(Refused, match="nothing in its directory proves"):
        store.salvage(lambda _: None, None)


def test_the_head_is_where_the_platform_put_the_vm(store: SnapshotStore, place: Path) -> None:
    publish(store, place, "p1", NEW)
    assert store.head() == HeadFacts("", True, {})
    assert store.bind_head("p1") == HeadFacts("p1", True, {})
    with pytest.raises(NotFound):
        store.bind_head("p2")
    assert store.head().point == "p1"
    assert store.set_state(ReplicaState.FAILOVER).state is ReplicaState.FAILOVER


def test_a_sweep_removes_what_dead_sessions_left_and_nothing_else(store: SnapshotStore, place: Path) -> None:
    publish(store, place, "p1", NEW)
    before = files(place)
    root = place / "ds" / NAME
    ours = ["digests/vda-p9.digest.partial", "digests/vda-p8.digest", "points/p8.xml", "points/p9.json.partial",
            "replica.json.partial"]
    foreign = root / "points" / "notes.txt"
    for path in (*(root / name for name in ours), foreign):
        path.write_bytes(b"?")
    assert sorted(store.leftovers().unneeded) == sorted(str(root / name) for name in ours)
    assert sorted(store.sweep()) == sorted(f"removed {name}" for name in ours)
    assert files(place) == {**before, "points/notes.txt": b"?"}
    assert store.sweep() == []


def test_a_lost_damaged_or_newer_record_is_said_and_never_replaced(store: SnapshotStore, place: Path) -> None:
    publish(store, place, "p1", NEW)
    path = place / "ds" / NAME / "replica.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"p1"', b'"p2"'))
    assert "checksum" in store.problem()
    with pytest.raises(ReplicaError, match="damaged"):
        store.load()
    document = json.loads(good) | {"format": 2}
    path.write_text(json.dumps(document))
    with pytest.raises(ReplicaError, match="newer"):
        store.problem()
    path.unlink()
    assert "is lost" in store.problem()
    with pytest.raises(Refused, match="without a record"):
        store.create(IDENTITY)
    path.write_bytes(good)
    assert store.problem() == ""


def test_a_replica_of_layers_is_not_taken_for_one_of_snapshots(store: SnapshotStore, place: Path) -> None:
    other = open_store("qcow2", place / "ds", NAME)
    with pytest.raises(ReplicaError, match="damaged"):
        other.load()
    assert store.load().points == ()


def test_another_replicas_place_is_refused_and_the_same_one_is_kept(store: SnapshotStore) -> None:
    assert store.create(IDENTITY) == store.load()
    with pytest.raises(Refused, match="holds a replica of VM"):
        store.create(replace(IDENTITY, id="other"))
    assert store.set_identity(replace(IDENTITY, job_name="weekly")).identity.job_name == "weekly"


def test_removal_leaves_nothing_but_what_is_not_ours(place: Path) -> None:
    store = SnapshotStore(place / "ds", NAME)
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, place, "p1", NEW)
        store.remove()
        assert not store.exists()
    assert list((place / "ds").iterdir()) == []
    with store.lock(1):
        store.create(IDENTITY)
        foreign = place / "ds" / NAME / "digests" / "notes.txt"
        foreign.touch()
        with pytest.raises(ReplicaError, match=r"notes\.txt is not one of them"):
            store.remove()
        assert foreign.exists()


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "gone", NAME)
    with pytest.raises(DatastoreError, match="does not exist"):
        store.load()
    with pytest.raises(DatastoreError, match="does not exist"), store.lock(1):
        pass


def test_one_point_is_made_at_a_time(store: SnapshotStore) -> None:
    draft = store.begin_point("p1", (NEW,))
    for act in (store.sweep, lambda: store.begin_point("p2", (NEW,)), lambda: store.retire(()), store.remove,
                lambda: store.forget(("p1",))):
        with pytest.raises(ReplicaError, match="in the making"):
            act()
    draft.abandon()
    store.sweep()
