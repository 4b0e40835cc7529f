"""A task that another controller began: what is done for it, in which order, and what is never done twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.replication.test_run import OLD, World
from understudy.errors import Cancelled, DatastoreError, MoverError, PlatformError, TransferError, UnderstudyError
from understudy.model.replica import RestorePoint
from understudy.model.session import Step, StepState
from understudy.mover import api
from understudy.replication.held import HeldTask


def left_by_a_dead_controller() -> HeldTask:
    """What a task held when its controller died, just after the copy was begun."""
    world = World()
    world.breaks["transfer"] = TransferError("copy", "the controller dies here")
    with pytest.raises(TransferError):
        world.run()
    (held,) = [item for item in world.held if item is not None]
    return held


@pytest.fixture(scope="module")
def held() -> HeldTask:
    return left_by_a_dead_controller()


def test_what_is_held_is_noted_with_the_works_while_the_disks_are_under_way() -> None:
    world = World()
    world.run()
    assert world.at("copy") < world.at("hold") < world.at("publish") < world.at("hold nothing")
    (held,) = [item for item in world.held if item is not None]
    assert held.works["vda"].source == "work-1"
    assert (held.draft, held.source_proxy, held.target_proxy) == ("draft-1", "local", "local")
    assert held.spec.point == world.points[-1].id


@pytest.mark.parametrize("where", ["snapshot", "transfer"])
def test_nothing_is_held_any_more_when_a_task_has_failed(where: str) -> None:
    world = World(breaks={where: DatastoreError("x", "no luck")})
    with pytest.raises(DatastoreError):
        world.run()
    assert world.held[-1] is None
    # Until then another controller could go on.
    assert world.events.index("hold nothing") < world.events.index("release draft")


def test_a_resumed_task_follows_what_is_under_way_and_ends_like_any_other(held: HeldTask) -> None:
    world = World()
    outcome = world.resume(held)
    order = ["reserve", "hold again", "publish", "hold nothing", "snapshot ended", "keep new", "bind head", "retire p0",
             "keep digests", "release draft", "released"]  # fmt: skip
    assert [world.events.index(word) for word in order] == sorted(world.at(word) for word in order)
    for word in ("publish", "snapshot ended"):
        assert world.events.count(word) == 1
    assert not {"copy", "draft", "sweep", "snapshot", "whole snapshot", "stop"} & set(world.events)
    assert (outcome.point, outcome.consistency, outcome.frozen_ms) == (held.spec.point, "crash", held.frozen_ms)
    assert world.points[-1].id == held.spec.point
    assert world.kept_draft == [False]
    assert world.warnings == []
    assert list(world.steps) == [Step.READ, Step.SEND, Step.WRITE, Step.COMMIT]
    assert set(world.steps.values()) == {StepState.SUCCESS, StepState.SKIPPED}


def test_the_baselines_are_settled_only_after_the_publish(held: HeldTask) -> None:
    world = World()
    world.resume(held)
    assert world.kept
    assert "keep old" not in world.events
    assert world.at("publish") < world.at("keep new")
    assert world.kept[-1] == held.request.checkpoint


def test_the_proxies_that_have_the_works_are_reserved(held: HeldTask) -> None:
    world = World()
    world.resume(replace(held, source_proxy="near", target_proxy="far"))
    assert world.reserved is not None
    assert (world.reserved.source_proxy, world.reserved.target_proxy) == ("near", "far")


def test_a_snapshot_that_is_gone_fails_the_task_and_what_came_is_kept(held: HeldTask) -> None:
    world = World(breaks={"hold again": PlatformError("snapshot of VM 'web'", "it is not held any more")})
    with pytest.raises(PlatformError, match="it is not held any more"):
        world.resume(held)
    assert world.kept_draft == [True]
    assert "publish" not in world.events
    assert world.points == (OLD,)
    assert set(world.kept) == {"cp-old"}
    assert "drop digests" in world.events
    assert world.held[-1] is None


@pytest.mark.parametrize(
    ("error", "keep"),
    [(TransferError("read", "broken"), True), (DatastoreError("write", "no space left"), False)],
    ids=["transfer", "datastore"],
)
def test_a_transfer_that_fails_after_all_undoes_as_ever(held: HeldTask, error: UnderstudyError, keep: bool) -> None:
    world = World(breaks={"transfer": error})
    with pytest.raises(type(error)):
        world.resume(held)
    assert world.at("hold again") < world.at("stop") < world.at("snapshot ended")
    assert world.kept_draft == [keep]
    assert set(world.kept) == {"cp-old"}
    assert world.events[world.at("snapshot ended") :].count("keep old") == 1


def test_a_cancellation_ends_a_resumed_task(held: HeldTask) -> None:
    world = World(cancel_at="hold again")
    with pytest.raises(Cancelled):
        world.resume(held)
    assert world.kept_draft == [False]
    assert "publish" not in world.events
    assert "snapshot ended" in world.events


def published(held: HeldTask) -> RestorePoint:
    return replace(OLD, id=held.spec.point, baseline=held.snapshot.baseline)


def test_a_point_that_was_published_before_the_controller_died_is_not_published_again(held: HeldTask) -> None:
    world = World(points=(OLD, published(held)))
    outcome = world.resume(held)
    assert outcome.point == held.spec.point
    assert not {"publish", "copy", "drop digests"} & set(world.events)
    order = ["hold again", "hold nothing", "snapshot ended", "keep new", "bind head", "retire p0", "keep digests",
             "release draft"]  # fmt: skip
    assert [world.events.index(word) for word in order] == sorted(world.at(word) for word in order)
    assert list(world.steps) == [Step.COMMIT]


def test_a_published_point_stands_although_its_snapshot_is_gone(held: HeldTask) -> None:
    world = World(points=(OLD, published(held)), breaks={"hold again": PlatformError("snapshot", "it is gone")})
    assert world.resume(held).point == held.spec.point
    assert world.warnings == ["snapshot: it is gone"]
    assert set(world.kept) == {held.request.checkpoint}
    assert {"bind head", "retire p0", "keep digests", "release draft"} <= set(world.events)


def test_a_replica_that_cannot_be_looked_at_leaves_the_draft_to_be_continued(
    held: HeldTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()

    def refuse(*_: object, settle: bool) -> api.ReplicaFacts:
        raise MoverError("proxy", "gone")

    monkeypatch.setattr("understudy.replication.target_side.inspect", refuse)
    with pytest.raises(MoverError):
        world.resume(held)
    assert world.kept_draft == [True]
    assert world.kept == [], "nothing is known of the points, so no baseline may go"
