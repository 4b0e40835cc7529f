"""What a replica's files say, asked for by commands that mean one of its points."""

from __future__ import annotations

from understudy.cli.app import App
from understudy.controller.records import ReplicaRecord
from understudy.errors import NotFound, ReplicaError
from understudy.model.replica import Replica, RestorePoint
from understudy.mover.api import ReplicaFacts


def facts_of(app: App, record: ReplicaRecord) -> ReplicaFacts:
    """Everything known of a replica that is there.

    :raises ReplicaError: if its files are gone.
    """
    facts = app.services.replica_facts(record)
    if facts.replica is None:
        raise ReplicaError(f"replica {record.full_name!r}", "its files are gone",
                           f"forget it: understudy replica remove {record.full_name!r}")
    return facts


def replica_of(app: App, record: ReplicaRecord) -> Replica:
    """What its files say: a controller that died may have published a point that it never noted."""
    replica = facts_of(app, record).replica
    assert replica is not None
    return replica


def newest_of(record: ReplicaRecord, replica: Replica) -> RestorePoint:
    """The newest restore point.

    :raises NotFound: if there is none.
    """
    if replica.newest is None:
        raise NotFound(f"replica {record.full_name!r}", "it has no restore point", "run its job first")
    return replica.newest


def chosen_point(app: App, record: ReplicaRecord, point: str | None) -> str:
    """The id of the point that the operator means: the newest one, if none is named.

    :raises NotFound: if there is no such point, or none at all.
    """
    replica = replica_of(app, record)
    return replica.point(point).id if point is not None else newest_of(record, replica).id
