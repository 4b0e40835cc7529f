"""Replicas that the configuration database knows: a cache of each ``replica.json``, so that lists need no datastore."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from understudy.controller.catalog import datastore_row, host_row
from understudy.controller.database import Database
from understudy.controller.records import ReplicaRecord
from understudy.controller.schema import JobRow, ReplicaRow, RestorePointRow
from understudy.errors import NotFound, Refused
from understudy.model.guest import ApplicationResult
from understudy.model.replica import (
    Baseline,
    Consistency,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
)
from understudy.mover.protocol import decode_plain


def save_replica(database: Database, replica: Replica, datastore: str, host: str) -> ReplicaRecord:
    """Store what ``replica.json`` says now, in place of what it said before.

    :raises NotFound: if the datastore or the host is unknown.
    """
    with database.transaction() as session:
        datastore_row(session, datastore)
        host_row(session, host)
        _forget_others(session, replica.identity, datastore)
        row = session.get(ReplicaRow, replica.identity.id)
        if row is None:
            row = ReplicaRow(id=replica.identity.id)
            session.add(row)
        _fill(row, replica, datastore, host)
        row.job_id = session.scalar(select(JobRow.id).filter_by(id=replica.identity.job_id))
        _fill_points(row, replica.points)
        session.flush()
        return _record(session, row)


def list_replicas(database: Database) -> tuple[ReplicaRecord, ...]:
    """All replicas by name."""
    with database.reading() as session:
        rows = session.scalars(select(ReplicaRow).order_by(ReplicaRow.name, ReplicaRow.datastore)).all()
        return tuple(_record(session, row) for row in rows)


def find_replica(database: Database, name: str) -> ReplicaRecord:
    """The replica called ``name``, or ``DATASTORE/NAME`` where several datastores have one of that name.

    :raises NotFound: if there is none.
    :raises Refused: if several are meant.
    """
    datastore, slash, inner = name.partition("/")
    query = select(ReplicaRow).order_by(ReplicaRow.datastore)
    with database.reading() as session:
        rows = session.scalars(query.filter_by(name=name)).all()
        if not rows and slash:
            rows = session.scalars(query.filter_by(datastore=datastore, name=inner)).all()
        if not rows:
            raise NotFound(f"replica {name!r}", "no such replica", "see 'understudy replica list'")
        if len(rows) > 1:
            candidates = ", ".join(f"'{row.datastore}/{row.name}'" for row in rows)
            raise Refused(f"replica {name!r}", "several datastores have one of that name", f"say which: {candidates}")
        return _record(session, rows[0])


def get_replica(database: Database, replica_id: str) -> ReplicaRecord:
    """The replica with that id.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return _record(session, _row(session, replica_id))


def forget_replica(database: Database, replica_id: str) -> None:
    """Remove the record of a replica; its files and its VM stay.

    :raises NotFound: if there is none.
    """
    with database.transaction() as session:
        session.delete(_row(session, replica_id))


def _row(session: Session, replica_id: str) -> ReplicaRow:
    row = session.get(ReplicaRow, replica_id)
    if row is None:
        raise NotFound(f"replica {replica_id!r}", "no such replica", "see 'understudy replica list'")
    return row


def _forget_others(session: Session, identity: ReplicaIdentity, datastore: str) -> None:
    """Drop the record of a replica whose place another one has taken: the files say which one lies there."""
    other = session.scalar(
        select(ReplicaRow).where(
            ReplicaRow.datastore == datastore, ReplicaRow.name == identity.name, ReplicaRow.id != identity.id
        )
    )
    if other is not None:
        session.delete(other)
        session.flush()


def _fill(row: ReplicaRow, replica: Replica, datastore: str, host: str) -> None:
    identity = replica.identity
    row.name, row.datastore, row.target_host = identity.name, datastore, host
    row.owner_id, row.owner_name = identity.job_id, identity.job_name
    row.source_vm, row.source_uuid = identity.source_vm, identity.source_uuid
    row.domain_uuid, row.state, row.head_point = identity.domain_uuid, replica.state.value, replica.head_point


def _fill_points(row: ReplicaRow, points: tuple[RestorePoint, ...]) -> None:
    """Make the cached points those of the file: rows of points that stay are reused."""
    cached = {point.id: point for point in row.points}
    row.points = []
    for position, point in enumerate(points):
        entry = cached.get(point.id) or RestorePointRow(id=point.id)
        entry.position, entry.created_at, entry.consistency = position, point.created_at, point.consistency.value
        entry.session, entry.block_size, entry.versions = point.session, point.block_size, dict(point.versions)
        entry.disks = [asdict(disk) for disk in point.disks]
        entry.baseline = asdict(point.baseline) if point.baseline else None
        entry.applications = [asdict(item) for item in point.applications]
        row.points.append(entry)


def _record(session: Session, row: ReplicaRow) -> ReplicaRecord:
    identity = ReplicaIdentity(
        id=row.id,
        name=row.name,
        job_id=row.owner_id,
        job_name=row.owner_name,
        source_vm=row.source_vm,
        source_uuid=row.source_uuid,
        domain_uuid=row.domain_uuid,
    )
    points = tuple(_point(point) for point in row.points)
    job = session.get(JobRow, row.job_id) if row.job_id else None
    replica = Replica(identity, ReplicaState(row.state), points, row.head_point)
    return ReplicaRecord(replica, row.datastore, row.target_host, job.name if job else None)


def _point(row: RestorePointRow) -> RestorePoint:
    return RestorePoint(
        id=row.id,
        created_at=row.created_at,
        consistency=Consistency(row.consistency),
        session=row.session,
        block_size=row.block_size,
        disks=tuple(PointDisk(**disk) for disk in row.disks),
        baseline=_baseline(row.baseline),
        versions=dict(row.versions),
        applications=tuple(decode_plain(ApplicationResult, item) for item in row.applications),
    )


def _baseline(stored: dict[str, Any] | None) -> Baseline | None:
    return decode_plain(Baseline, stored) if stored else None
