"""Which points stay when others go: decided on values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import Refused
from understudy.model.replica import Consistency, PointDisk, Replica, ReplicaState, RestorePoint
from understudy.storage.snapshots.points import contradictions, retired, without

from .snapshot_lab import IDENTITY


def replica(*points: str, head: str = "") -> Replica:
    """A replica; each point is its id and its disks: ``a`` chained, ``A`` with a file of its own."""
    made: list[RestorePoint] = []
    for text in points:
        point, _, names = text.partition(":")
        before = made[-1] if made else None
        disks = []
        for name in names:
            below = before.disk(name.lower()) if before and name.islower() else None
            disks.append(PointDisk(name.lower(), 1024, f"{name.lower()}-{point}.snapshot", below.layer if below else "",
                                   f"{name.lower()}-{point}.digest", 1024))
        made.append(RestorePoint(point, "2026-01-02T03:04:05Z", Consistency.CRASH, 1, 1 << 20, tuple(disks)))
    return Replica(IDENTITY, ReplicaState.READY, tuple(made), head)


def backings(after: Replica) -> dict[str, list[str]]:
    return {point.id: [disk.backing for disk in point.disks] for point in after.points}


@pytest.mark.parametrize(("gone", "left"), [
    (("p2",), {"p1": [""], "p3": ["a-p1.snapshot"]}),
    (("p1",), {"p2": [""], "p3": ["a-p2.snapshot"]}),
    (("p1", "p2"), {"p3": [""]}),
    (("p3",), {"p1": [""], "p2": ["a-p1.snapshot"]}),
    (("p1", "p2", "p3"), {}),
    (("never",), {"p1": [""], "p2": ["a-p1.snapshot"], "p3": ["a-p2.snapshot"]}),
])
def test_what_lay_on_a_point_that_is_gone_lies_on_the_one_before(gone: tuple[str, ...],
                                                                left: dict[str, list[str]]) -> None:
    assert backings(without(replica("p1:A", "p2:a", "p3:a"), gone)) == left


def test_a_disk_that_had_a_new_file_since_lies_on_nothing() -> None:
    assert backings(without(replica("p1:A", "p2:A", "p3:a"), ("p2",))) == {"p1": [""], "p3": [""]}


def test_a_disk_that_was_away_in_between_lies_on_nothing() -> None:
    assert backings(without(replica("p1:AB", "p2:a", "p3:aB"), ("p2",)))["p3"] == ["a-p1.snapshot", ""]


@given(st.lists(st.sets(st.sampled_from("aAbB"), max_size=2), min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_no_history_becomes_a_contradiction(disks: list[set[str]], gone: set[int]) -> None:
    one_each = [{name.lower(): name for name in sorted(names)}.values() for names in disks]
    before = replica(*(f"p{number}:{''.join(names)}" for number, names in enumerate(one_each)))
    assert contradictions(before) == ""
    after = without(before, {f"p{number}" for number in gone})
    assert contradictions(after) == ""
    left = [point.id for point in before.points if int(point.id[1:]) not in gone]
    assert [point.id for point in after.points] == left


def test_the_head_is_nowhere_when_its_point_is_forgotten() -> None:
    assert without(replica("p1:A", "p2:a", head="p1"), ("p1",)).head_point == ""
    assert without(replica("p1:A", "p2:a", head="p2"), ("p1",)).head_point == "p2"


@pytest.mark.parametrize(("gone", "why"), [
    (("p2",), "only the oldest"), (("p1", "p1"), "only the oldest"), (("p1", "p2", "p3"), "the newest"),
    (("p1", "p2"), "is at point 'p2'"),
])
def test_only_the_oldest_points_that_nothing_needs_are_retired(gone: tuple[str, ...], why: str) -> None:
    with pytest.raises(Refused, match=why):
        retired("retire", replica("p1:A", "p2:a", "p3:a", head="p2"), gone)


def test_records_that_cannot_be_true_are_found() -> None:
    good = replica("p1:A", "p2:a")
    first, second = good.points
    wrong = [
        (replace(good, points=(first, first)), "occurs 2 times"),
        (replace(good, points=(second, first)), "not the point before"),
        (replace(good, points=(second,)), "not the point before"),
        (replace(good, head_point="p9"), "which is not there"),
        (with_disk(good, layer="a-p1.snapshot"), "is not disk a at point p2"),
        (with_disk(good, digest="b-p2.digest"), "holds no digests"),
        (with_disk(good, size=2048), "another size"),
    ]
    for record, why in wrong:
        assert why in contradictions(record)


def with_disk(good: Replica, **changes: object) -> Replica:
    first, second = good.points
    disk = PointDisk(**{**vars(second.disks[0]), **changes})
    return replace(good, points=(first, replace(second, disks=(disk,))))
