"""Killed anywhere, the store of snapshots loses no point, shows none that is not complete, and the sweep heals it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from understudy.storage.snapshots.store import SnapshotStore
from understudy.storage.values import NewDisk

from .snapshot_lab import IDENTITY, NAME, SIZE, publish, run_snapshot_store

NEW, CHAINED = NewDisk("vda", SIZE, False), NewDisk("vda", SIZE, True)
PUBLISH = (f"publish(store, datastore.parent, 'p3', NewDisk('vda', {SIZE}, True), NewDisk('new', 65536, False))")
KILLED = [("layers_durable", 2), ("renaming", 2), ("renamed", 2), ("recorded", 3)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica of two points."""
    place = tmp_path_factory.mktemp("template")
    (place / "ds").mkdir()
    store = SnapshotStore(place / "ds", NAME)
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, place, "p1", NEW)
        publish(store, place, "p2", CHAINED)
    return place / "ds"


@pytest.fixture
def datastore(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "ds")
    return tmp_path / "ds"


def healthy(datastore: Path) -> list[str]:
    """Ids of the points, of which none has lost anything; nothing else is there."""
    store = SnapshotStore(datastore, NAME)
    points = store.load().points
    assert [store.losses(point.id) for point in points] == [[]] * len(points)
    wanted = {"replica.json", "replica.json.previous", ".lock"}
    wanted |= {f"digests/{disk.digest}" for point in points for disk in point.disks}
    wanted |= {f"points/{point.id}.{suffix}" for point in points for suffix in ("xml", "json")}
    root = datastore / NAME
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == wanted
    return [point.id for point in points]


@pytest.mark.parametrize(("step", "count"), KILLED)
def test_a_killed_publish_shows_the_point_wholly_or_not_at_all(datastore: Path, step: str, count: int) -> None:
    assert run_snapshot_store(datastore, PUBLISH, f"publish.{step}=kill") == -9
    store = SnapshotStore(datastore, NAME)
    assert [point.id for point in store.load().points] == ["p1", "p2", "p3"][:count]
    assert all(store.losses(point.id) == [] for point in store.load().points)
    assert run_snapshot_store(datastore, "store.sweep()") == 0
    assert healthy(datastore) == ["p1", "p2", "p3"][:count]
    if count == 2:
        assert run_snapshot_store(datastore, PUBLISH) == 0
        assert healthy(datastore) == ["p1", "p2", "p3"]


@pytest.mark.parametrize(("step", "count"), KILLED)
def test_a_publish_that_fails_is_abandoned_or_stays(datastore: Path, step: str, count: int) -> None:
    act = ("try:\n        " + PUBLISH + "\n    except Exception:\n        store._draft.abandon()")
    assert run_snapshot_store(datastore, act, f"publish.{step}=error") == 0
    assert healthy(datastore) == ["p1", "p2", "p3"][:count]


@pytest.mark.parametrize("act", ["retire", "forget"])
def test_points_that_were_going_are_gone_and_the_others_whole(datastore: Path, act: str) -> None:
    assert run_snapshot_store(datastore, f"store.{act}(('p1',))", "retire.recorded=kill") == -9
    assert [point.id for point in SnapshotStore(datastore, NAME).load().points] == ["p2"]
    assert run_snapshot_store(datastore, "store.sweep()") == 0
    (datastore / NAME / ".verify").unlink(missing_ok=True)  # of the killed process; who locks next removes it
    assert healthy(datastore) == ["p2"]
