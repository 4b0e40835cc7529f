"""What is due to be verified by a job's schedule, and whose turn it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from understudy.controller.due import DuePoint, due_points
from understudy.controller.records import ReplicaRecord
from understudy.controller.verification import due_verifications
from understudy.errors import MoverError
from understudy.model.health import DiskHealth
from understudy.model.job import Job
from understudy.model.replica import Consistency, PointDisk, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.mover.api import ReplicaFacts

NOW = datetime(2026, 1, 10, 12, 0, tzinfo=UTC)
WEEK = 7 * 86400


def days_ago(days: float) -> str:
    return (NOW - timedelta(days=days)).isoformat(timespec="milliseconds")


def replica(*points: str, name: str = "web") -> Replica:
    disks = tuple(PointDisk(disk, 1 << 20, f"{disk}.qcow2", "", f"{disk}.digest", 1) for disk in ("vda", "vdb"))
    identity = ReplicaIdentity(f"id-{name}", name, "j", "nightly", name, "u1", "u2")
    made = tuple(RestorePoint(point, days_ago(30), Consistency.CRASH, 1, 1 << 20, disks) for point in points)
    return Replica(identity, ReplicaState.READY, made)


def verified(point: str, days: float, *, begun: bool = False) -> tuple[DiskHealth, ...]:
    started = days_ago(0.1) if begun else ""
    return tuple(DiskHealth(point, disk, started, verified_at=days_ago(days)) for disk in ("vda", "vdb"))


def test_the_newest_point_is_due_if_nothing_of_the_replica_was_verified_for_so_long() -> None:
    points = replica("p1", "p2", "p3")
    assert due_points(points, (), WEEK, NOW) == [DuePoint("p3", "", False)]
    assert due_points(points, verified("p1", 6.9), WEEK, NOW) == []
    assert due_points(points, verified("p2", 7.1), WEEK, NOW) == [
        DuePoint("p2", days_ago(7.1), False), DuePoint("p3", days_ago(7.1), False)]  # fmt: skip
    assert due_points(points, verified("p3", 6.9), WEEK, NOW) == []
    assert due_points(points, verified("p3", 7.0), WEEK, NOW) == [DuePoint("p3", days_ago(7.0), False)]
    assert due_points(replica(), (), WEEK, NOW) == []


def test_a_point_counts_as_verified_when_all_its_disks_are() -> None:
    half = verified("p1", 1)[:1]
    assert due_points(replica("p1"), half, WEEK, NOW) == [DuePoint("p1", "", False)]


def test_a_pass_that_was_stopped_goes_on_first() -> None:
    known = (*verified("p1", 20), *verified("p2", 1, begun=True), *verified("p3", 30))
    found = due_points(replica("p1", "p2", "p3"), known, WEEK, NOW)
    assert [item.point for item in found] == ["p2", "p3", "p1"]


def test_what_is_due_of_all_replicas_comes_by_turn_and_one_that_cannot_be_asked_hinders_no_other() -> None:
    jobs = [
        Job("1", "weekly", "a", "b", "ds", ("x",), verify_every_s=WEEK, verify_rate=5),
        Job("2", "never", "a", "b", "ds", ("x",)),
        Job("3", "daily", "a", "b", "ds", ("x",), verify_every_s=86400),
    ]
    known = {"one": verified("p1", 8), "two": verified("p1", 9), "three": (), "four": verified("p1", 2)}
    records = [
        ReplicaRecord(replica("p1", name=name), "ds", "b", job)
        for name, job in (("one", "weekly"), ("two", "weekly"), ("three", "never"), ("four", "daily"),
                          ("five", "daily"), ("six", None))
    ]  # fmt: skip
    clock = datetime.now(UTC) - NOW

    def facts(record: ReplicaRecord) -> ReplicaFacts:
        if record.name == "five":
            raise MoverError("proxy 'far'", "it does not answer")
        moved = tuple(
            DiskHealth(item.point, item.disk, verified_at=(datetime.fromisoformat(item.verified_at) + clock).isoformat(
                timespec="milliseconds")) for item in known[record.name])  # fmt: skip
        return ReplicaFacts(record.replica, None, 1, {}, {}, {}, health=moved)

    answer = due_verifications(jobs, records, facts)
    assert [(item.record.name, item.point, item.newest, item.rate) for item in answer.due] == [
        ("two", "p1", True, 5), ("one", "p1", True, 5), ("four", "p1", True, 0)]  # fmt: skip
    assert answer.problems == ("proxy 'far': it does not answer",)
