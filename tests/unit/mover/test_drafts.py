"""The end of a draft waits for what is being done to its replica."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.mover.replica_lab import IDENTITY
from understudy.errors import Fenced, NotFound
from understudy.model.replica import Consistency
from understudy.mover.api import BeginPoint, OwnedReplica, ReplicaRef
from understudy.mover.drafts import Draft, Drafts, store_of
from understudy.storage.qcow2 import draft as qcow2_draft
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import MIB


class Standing:
    """A thread that stands still inside an act until it is let go."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._thread = threading.Thread(target=act)
        self._ender = threading.Thread()

    def stand(self) -> None:
        """Called by the act."""
        self.reached.set()
        assert self.go_on.wait(10)

    def end_meanwhile(self, end: Callable[[], object], check: Callable[[], object]) -> None:
        """Ask for the end while the act stands, check, and let the act go on."""
        self._thread.start()
        assert self.reached.wait(10)
        self._ender = threading.Thread(target=end)
        self._ender.start()
        self._ender.join(0.2)
        try:
            check()
        finally:
            self.go_on.set()
            self._thread.join(10)
            self._ender.join(10)


@pytest.fixture
def drafts(tmp_path: Path) -> Iterator[tuple[Drafts, Draft]]:
    held = Drafts()
    ref = ReplicaRef("qcow2", str(tmp_path), "web")
    draft, _ = held.begin(BeginPoint(ref, IDENTITY, 1, "p1", (NewDisk("vda", MIB, chained=False),)))
    draft.point.layer("vda").finish()
    draft.point.digest_path("vda").write_bytes(b"digests")
    yield held, draft
    held.release(draft.id, keep=False)


def publish(draft: Draft) -> None:
    with draft.acting():
        meta = PointMeta("p1", "2026-01-01T00:00:00+00:00", Consistency.CRASH, 1, MIB, None, {}, "<domain/>")
        draft.point.publish(meta)


def test_a_draft_that_ends_while_it_is_published_leaves_the_point_whole(
    drafts: tuple[Drafts, Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, draft = drafts
    standing = Standing(lambda: publish(draft))
    renamed = "publish.renamed"
    monkeypatch.setattr(qcow2_draft, "fault_point", lambda name: standing.stand() if name == renamed else None)
    standing.end_meanwhile(lambda: held.release(draft.id, keep=True), lambda: None)
    store = store_of(draft.ref)
    assert [point.id for point in store.load().points] == ["p1"]
    assert store.damage("p1") == []


def test_a_draft_that_ends_gives_the_lock_back_only_after_what_is_done_under_it(drafts: tuple[Drafts, Draft]) -> None:
    held, draft = drafts

    def act() -> None:
        with held.owned(OwnedReplica(draft.ref, draft=draft.id)):
            standing.stand()

    standing = Standing(act)

    def still_locked() -> None:
        with pytest.raises(Fenced), store_of(draft.ref).lock(2):
            pass

    standing.end_meanwhile(lambda: held.release(draft.id, keep=True), still_locked)
    with store_of(draft.ref).lock(2):
        pass


def test_nothing_is_done_to_a_draft_that_has_ended(drafts: tuple[Drafts, Draft]) -> None:
    held, draft = drafts
    held.release(draft.id, keep=True)
    with pytest.raises(NotFound):
        publish(draft)
