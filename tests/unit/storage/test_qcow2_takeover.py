"""Killed anywhere, a layer that drafts hand on is continued or swept, and never believed wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from understudy.errors import DatastoreError
from understudy.model.extent import Extent
from understudy.storage.qcow2.draft import Qcow2Draft
from understudy.storage.qcow2.format import CLUSTER
from understudy.storage.qcow2.journal import read_journal
from understudy.storage.qcow2.store import Qcow2Store
from understudy.storage.values import KeptLayer, NewDisk

from .replica_lab import Lab, assert_clean, content, lab_in, point_meta, run_store

SIZE = 20 * CLUSTER + 512
NAME = "web 1_replica"
DISK = NewDisk("vda", SIZE, True, mark="m")
ONE = Extent(CLUSTER, 2 * CLUSTER)
DISKS = "(NewDisk('vda', 20 * 65536 + 512, True, mark='m'),)"
BEGIN = f"store.begin_point('p3', {DISKS})"
WRITE = (f"draft = store.begin_point('p2', {DISKS})\n    layer = draft.layer('vda')\n    "
         "layer.write_at(65536, b'\\2' * 131072)\n    "
         "draft.digest_path('vda').write_bytes(b'digests of p2')\n    "
         "from understudy.model.extent import Extent\n    layer.checkpoint([Extent(65536, 131072)])\n    "
         "layer.write_at(0, b'\\2' * 65536)\n    layer.checkpoint([Extent(0, 65536)])")
PUBLISH = WRITE + "\n    layer.finish()\n    draft.publish(point_meta('p2'))"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica of one point, full of ones."""
    datastore = tmp_path_factory.mktemp("template")
    with lab_in(datastore) as lab:
        draft = lab.store.begin_point("p1", (NewDisk("vda", SIZE, False),))
        publish(draft, "p1", b"\1")
    return datastore


def publish(draft: Qcow2Draft, point: str, fill: bytes) -> None:
    draft.layer("vda").write_at(0, fill * SIZE)
    draft.layer("vda").finish()
    draft.digest_path("vda").write_bytes(b"digest of " + point.encode())
    draft.publish(point_meta(point))


def fresh(template: Path, tmp_path: Path) -> tuple[Path, Qcow2Store]:
    datastore = tmp_path / "datastore"
    shutil.copytree(template, datastore)
    return datastore, Qcow2Store(datastore, NAME)


def partials(datastore: Path) -> list[str]:
    root = datastore / NAME
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.partial"))


def assert_honest(datastore: Path) -> None:
    """No journal of another point than the one that wrote last calls anything complete."""
    for path in (datastore / NAME / "layers").glob("*.journal.partial"):
        recorded = read_journal(path)
        assert recorded is None or not recorded.complete or "-p2." in path.name
        if recorded is not None and "-p2." in path.name and (path.parent / "vda-p2.qcow2.partial").exists():
            assert not (path.parent / "vda-p3.qcow2.partial").exists()


def publish_the_rest(datastore: Path, store: Qcow2Store, attempt: int = 5) -> KeptLayer:
    """Sweep, begin, complete and publish a point that differs from the first in one cluster; what was kept for it."""
    with store.lock(attempt):
        store.sweep()
        draft = store.begin_point("p9", (DISK,))
        kept = draft.kept("vda")
        shown = bytearray(b"\1" * SIZE)
        for item in (*kept.touched, Extent(7 * CLUSTER, CLUSTER)):
            draft.layer("vda").write_at(item.start, b"\x09" * item.length)
            shown[item.start:item.end] = b"\x09" * item.length
        draft.layer("vda").checkpoint([])
        draft.layer("vda").finish()
        draft.digest_path("vda").write_bytes(b"digest of p9")
        draft.publish(point_meta("p9"))
        assert content(store.image("p9", "vda")) == bytes(shown)
        assert content(store.image("p1", "vda")) == b"\1" * SIZE
        assert_clean(store.image("p9", "vda"))
        Lab(store, {"p1": {"vda": b""}, "p9": {"vda": b""}}).verify_files()
    return kept


@pytest.mark.parametrize(("fault", "touched"), [
    ("checkpoint.begun", ()), ("checkpoint.synced", ()), ("checkpoint.recorded", (ONE,)),
    ("publish.layers_durable", (Extent(0, 3 * CLUSTER),)), ("publish.renamed", ())])
def test_a_killed_draft_is_continued_from_its_last_checkpoint(template: Path, tmp_path: Path, fault: str,
                                                              touched: tuple[Extent, ...]) -> None:
    datastore, store = fresh(template, tmp_path)
    assert run_store(datastore, PUBLISH, f"{fault}=kill") == -9
    kept = publish_the_rest(datastore, store)
    assert (kept.touched, kept.complete) == (touched, touched)


@pytest.mark.parametrize("place", ["journal", "layer", "dropped", "durable", "digests"])
def test_a_killed_takeover_is_taken_over_again(template: Path, tmp_path: Path, place: str) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)
    for _ in range(3):  # as often as it happens
        assert run_store(datastore, BEGIN, f"takeover.{place}=kill") == -9
        assert_honest(datastore)
        assert ("layers/vda-p2.journal.partial" in partials(datastore)) == (place in ("journal", "layer"))
        assert run_store(datastore, "store.sweep()") == 0
        assert_honest(datastore)
        assert any(name.startswith("layers/vda-p") and name.endswith(".qcow2.partial") for name in partials(datastore))
        if place != "journal":  # else the old name stays, and the new one may be tried again
            break
    kept = publish_the_rest(datastore, store)
    assert kept.touched == (Extent(0, 3 * CLUSTER),)
    assert kept.complete == (kept.touched if place == "journal" else ())


@pytest.mark.parametrize("place", ["journal", "layer", "dropped", "durable", "digests"])
def test_a_killed_takeover_can_be_resumed(template: Path, tmp_path: Path, place: str) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)
    assert run_store(datastore, BEGIN, f"takeover.{place}=kill") == -9
    with store.lock(2):
        draft = store.resume_point("p3", (DISK,))
        kept = draft.kept("vda")
        assert (kept.touched, kept.complete) == (() if place == "journal" else (Extent(0, 3 * CLUSTER),), ())
        names = partials(datastore)
        assert [name for name in names if "-p3." not in name] == []
        draft.keep()
        assert store.sweep() == []


@pytest.mark.parametrize("place", ["journal", "layer", "dropped", "durable", "digests"])
def test_a_failed_takeover_loses_nothing(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         place: str) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)

    def full(name: str) -> None:
        if name == f"takeover.{place}":
            raise OSError(28, "No space left on device")

    with store.lock(2), monkeypatch.context() as patch:
        patch.setattr("understudy.storage.qcow2.takeover.fault_point", full)
        with pytest.raises(DatastoreError, match="the datastore is full"):
            store.begin_point("p3", (DISK,))
    assert_honest(datastore)
    assert publish_the_rest(datastore, store).touched == (Extent(0, 3 * CLUSTER),)


def test_a_sweep_says_what_of_a_takeover_it_removes(template: Path, tmp_path: Path) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)
    with store.lock(1):
        assert store.sweep() == []
    assert partials(datastore) == ["digests/vda-p2.digest.partial", "layers/vda-p2.journal.partial",
                                   "layers/vda-p2.qcow2.partial"]
    assert run_store(datastore, BEGIN, "takeover.layer=kill") == -9
    with store.lock(2):
        assert store.sweep() == ["removed digests/vda-p2.digest.partial", "removed layers/vda-p2.journal.partial"]
    assert partials(datastore) == ["layers/vda-p3.journal.partial", "layers/vda-p3.qcow2.partial"]
    (datastore / NAME / "layers/vda-p3.journal.partial").write_bytes(b"no journal")
    with store.lock(2):
        assert store.sweep() == ["removed layers/vda-p3.journal.partial", "removed layers/vda-p3.qcow2.partial"]


def test_digests_of_an_older_attempt_go_when_the_layer_is_handed_on_again(template: Path, tmp_path: Path) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)
    with store.lock(2):
        draft = store.begin_point("p3", (DISK,))
        kept = draft.kept("vda")
        assert kept.digests is not None
        assert kept.digests.read_bytes() == b"digests of p2"
        draft.keep()
        assert "digests/vda-p3.digest.claims.partial" in partials(datastore)
        draft = store.begin_point("p4", (DISK,))
        assert draft.kept("vda") == KeptLayer(kept.touched)
        assert partials(datastore) == ["layers/vda-p4.journal.partial", "layers/vda-p4.qcow2.partial"]
        draft.abandon()
        assert partials(datastore) == []


def test_a_journal_of_another_point_does_not_count(template: Path, tmp_path: Path) -> None:
    datastore, store = fresh(template, tmp_path)
    run_store(datastore, WRITE)
    layers = datastore / NAME / "layers"
    for kind in ("qcow2", "journal"):
        (layers / f"vda-p2.{kind}.partial").rename(layers / f"vda-p3.{kind}.partial")
    with store.lock(2):
        assert len(store.sweep()) == 3


def test_a_layer_whose_base_was_merged_away_is_swept(template: Path, tmp_path: Path) -> None:
    datastore, store = fresh(template, tmp_path)
    with store.lock(1):
        draft = store.begin_point("p1b", (NewDisk("vda", SIZE, True),))
        publish(draft, "p1b", b"\5")
    run_store(datastore, WRITE)
    with store.lock(2):
        assert store.sweep() == []
        store.retire(("p1",))  # the newest point's layer now has the name of the oldest one's
        assert partials(datastore) == []


def test_retiring_points_leaves_a_layer_on_the_newest_one_alone(template: Path, tmp_path: Path) -> None:
    datastore, store = fresh(template, tmp_path)
    with store.lock(1):
        for point in ("p1a", "p1b"):
            draft = store.begin_point(point, (NewDisk("vda", SIZE, False),))
            publish(draft, point, b"\5")
    run_store(datastore, WRITE)
    with store.lock(2):
        store.retire(("p1", "p1a"))
        assert len(partials(datastore)) == 3
        assert store.begin_point("p3", (DISK,)).kept("vda").touched == (Extent(0, 3 * CLUSTER),)
