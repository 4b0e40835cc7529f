"""Jobs in the configuration database: one transaction per function, and what makes a job acceptable."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from understudy.controller.catalog import datastore_row, host_row, proxy_row
from understudy.controller.database import Database
from understudy.controller.naming import check_name, check_path, has_control_characters
from understudy.controller.schema import CredentialRow, ExcludedDiskRow, JobRow, JobVmRow, SessionRow
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.guest import GuestPolicy, GuestSettings
from understudy.model.job import (
    BLOCK_SIZES,
    LIBRARY_SCHEMES,
    MOST_SNAPSHOT_POINTS,
    SNAPSHOTS,
    Compression,
    Job,
    SnapshotMode,
)
from understudy.model.session import SessionState
from understudy.mover.protocol import decode_plain
from understudy.units import KIB
from understudy.volumes.masks import check_mask

MAX_POINTS = 1000
MAX_VERIFY_EVERY_S = 3650 * 86400
MIN_VERIFY_RATE = 64 * KIB
MAX_SCRIPT_TIMEOUT_S = 3600
#: With less nothing would be frozen; for longer no application should have to stand still.
MIN_FREEZE_DEADLINE_S, MAX_FREEZE_DEADLINE_S = 3, 60
#: The rest must do for file systems and the snapshot.
MIN_APPLICATIONS_PERCENT, MAX_APPLICATIONS_PERCENT = 10, 60
UNFINISHED = (SessionState.QUEUED.value, SessionState.RUNNING.value)


def new_job_id() -> str:
    """An id for a new job, unique among all controllers."""
    return uuid.uuid4().hex


def create_job(database: Database, job: Job) -> Job:
    """Store a new job.

    :raises UsageError: if a setting is not acceptable.
    :raises NotFound: if a host, the datastore or a proxy is unknown.
    :raises Refused: if the name is taken.
    """
    what = f"create job {job.name!r}"
    _check_settings(job, what)
    with database.transaction() as session:
        _check_references(session, job, what)
        if session.scalar(select(JobRow.id).filter_by(name=job.name)) is not None:
            raise Refused(what, "the name is taken", "choose another name, or delete the old job first")
        session.add(_row(job))
    return job


def list_jobs(database: Database) -> tuple[Job, ...]:
    """All jobs by name."""
    with database.reading() as session:
        return tuple(job_value(row) for row in session.scalars(select(JobRow).order_by(JobRow.name)))


def get_job(database: Database, name: str) -> Job:
    """The job called ``name``.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return job_value(job_row(session, name))


def set_enabled(database: Database, name: str, enabled: bool) -> Job:
    """Let sessions of the job start, or not; a running session goes on.

    :raises NotFound: if there is no such job.
    """
    with database.transaction() as session:
        row = job_row(session, name)
        row.enabled = enabled
        return job_value(row)


@dataclass(frozen=True)
class JobChange:
    """Settings of a job to change; None stays as it is. See :class:`understudy.model.job.Job`.

    Which proxies move its disks may change at any time: where the new one has no digests of the last point, they are
    fetched from the target.
    """

    points: int | None = None
    verify_every_s: int | None = None
    verify_rate: int | None = None
    masks: tuple[tuple[str, str], ...] | None = None
    exclude_swap: bool | None = None
    exclude_free: bool | None = None
    guests: tuple[GuestSettings, ...] | None = None
    source_proxy: str | None = None
    target_proxy: str | None = None
    connections: int | None = None
    compression: Compression | None = None
    patience_s: int | None = None


def change_job(database: Database, name: str, change: JobChange) -> Job:
    """Change settings of a job, for what begins later.

    :raises NotFound: if there is no such job, credential or proxy.
    :raises UsageError: if a setting is not acceptable.
    """
    what = f"set job {name!r}"
    wanted = {field.name: getattr(change, field.name) for field in fields(change)}
    with database.transaction() as session:
        row = job_row(session, name)
        changed = replace(job_value(row), **{key: value for key, value in wanted.items() if value is not None})
        _check_settings(changed, what)
        _check_credentials(session, changed)
        _check_proxies(session, changed)
        row.points, row.verify_every_s, row.verify_rate = changed.points, changed.verify_every_s, changed.verify_rate
        row.exclude_swap, row.exclude_free = changed.exclude_swap, changed.exclude_free
        row.masks, row.guests = _masks(changed), _guests(changed)
        row.source_proxy, row.target_proxy = changed.source_proxy or None, changed.target_proxy or None
        row.connections, row.compression = changed.connections, changed.compression.value
        row.patience_s = changed.patience_s
        return changed


def delete_job(database: Database, name: str) -> None:
    """Forget a job; its replicas stay, and so does the history of its sessions.

    :raises NotFound: if there is no such job.
    :raises Refused: if it has a session that has not ended.
    """
    with database.transaction() as session:
        row = job_row(session, name, lock=True)
        active = unfinished_session(session, row.id)
        if active is not None:
            raise Refused(f"delete job {name!r}", f"session {active} has not ended",
                          f"wait for it, or 'understudy session stop {active}'")
        session.delete(row)


def job_row(session: Session, name: str, lock: bool = False) -> JobRow:
    """For the controller package: the job's row, or NotFound; ``lock`` keeps other sessions away on PostgreSQL."""
    query = select(JobRow).filter_by(name=name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(f"job {name!r}", "no such job", "see 'understudy job list'")
    return row


def unfinished_session(session: Session, job_id: str) -> int | None:
    """For the controller package: the id of the job's session that is queued or running."""
    return session.scalar(select(SessionRow.id).where(SessionRow.job_id == job_id, SessionRow.state.in_(UNFINISHED)))


def job_value(row: JobRow) -> Job:
    """For the controller package: the row as a value of the model."""
    return Job(
        id=row.id,
        name=row.name,
        source=row.source,
        target=row.target,
        datastore=row.datastore,
        vms=tuple(item.vm for item in row.vms),
        points=row.points,
        suffix=row.suffix,
        snapshot_mode=SnapshotMode(row.snapshot_mode),
        guest_policy=GuestPolicy(row.guest_policy),
        block_size=row.block_size,
        compression=Compression(row.compression),
        source_proxy=row.source_proxy or "",
        target_proxy=row.target_proxy or "",
        excluded_disks=tuple((item.vm, item.disk) for item in row.excluded_disks),
        enabled=row.enabled,
        connections=row.connections,
        patience_s=row.patience_s,
        other_sources=tuple(row.other_sources),
        verify_every_s=row.verify_every_s,
        verify_rate=row.verify_rate,
        masks=tuple((vm, mask) for vm, mask in row.masks),
        exclude_swap=row.exclude_swap,
        exclude_free=row.exclude_free,
        guests=tuple(decode_plain(GuestSettings, item) for item in row.guests),
    )


def _row(job: Job) -> JobRow:
    return JobRow(
        id=job.id,
        name=job.name,
        source=job.source,
        target=job.target,
        datastore=job.datastore,
        points=job.points,
        suffix=job.suffix,
        snapshot_mode=job.snapshot_mode.value,
        guest_policy=job.guest_policy.value,
        block_size=job.block_size,
        compression=job.compression.value,
        source_proxy=job.source_proxy or None,
        target_proxy=job.target_proxy or None,
        enabled=job.enabled,
        connections=job.connections,
        patience_s=job.patience_s,
        other_sources=list(job.other_sources),
        verify_every_s=job.verify_every_s,
        verify_rate=job.verify_rate,
        masks=_masks(job),
        exclude_swap=job.exclude_swap,
        exclude_free=job.exclude_free,
        guests=_guests(job),
        vms=[JobVmRow(vm=vm, position=position) for position, vm in enumerate(job.vms)],
        excluded_disks=[
            ExcludedDiskRow(vm=vm, disk=disk, position=position)
            for position, (vm, disk) in enumerate(job.excluded_disks)
        ],
    )


def _masks(job: Job) -> list[list[str]]:
    return [[vm, mask] for vm, mask in job.masks]


def _guests(job: Job) -> list[dict[str, Any]]:
    return [asdict(item) for item in job.guests]


def _check_settings(job: Job, what: str) -> None:
    check_name(what, job.name)
    if not 1 <= job.points <= MAX_POINTS:
        raise UsageError(what, f"{job.points} restore points cannot be kept", f"choose 1 to {MAX_POINTS}")
    if not job.suffix.strip() or "/" in job.suffix or has_control_characters(job.suffix) or len(job.suffix) > 100:
        raise UsageError(what, f"the suffix {job.suffix!r} is empty or no part of a VM name", "choose e.g. _replica")
    if job.block_size not in BLOCK_SIZES.values():
        raise UsageError(what, f"unknown block size {job.block_size}", f"choose one of {', '.join(BLOCK_SIZES)}")
    if job.verify_every_s < 0 or job.verify_every_s > MAX_VERIFY_EVERY_S:
        raise UsageError(what, "verifying so seldom is not possible", "choose 1s to 3650d, or off")
    if job.verify_rate and job.verify_rate < MIN_VERIFY_RATE:
        raise UsageError(what, f"{job.verify_rate} bytes a second are too few to verify with",
                         "choose 64K or more, or off")
    _check_vms(job, what)
    _check_masks(job, what)
    _check_guests(job, what)


def _check_masks(job: Job, what: str) -> None:
    for vm, mask in job.masks:
        if vm and vm not in job.vms:
            raise UsageError(what, f"the mask '{vm}:{mask}' names no VM of this job", "see 'understudy job show'")
        try:
            check_mask(mask)
        except ValueError as exc:
            raise UsageError(what, str(exc), "give e.g. /var/cache/** or C:\\Temp\\**") from exc
    if len(set(job.masks)) != len(job.masks):
        raise UsageError(what, "a mask is given twice", "give each mask once")


def _check_guests(job: Job, what: str) -> None:
    for settings in job.guests:
        if settings.vm and settings.vm not in job.vms:
            raise UsageError(what, f"{settings.vm!r} is no VM of this job", "see 'understudy job show'")
        for path in (*settings.pre_freeze, *settings.post_thaw):
            check_path(what, path)
        if not 0 <= settings.script_timeout_s <= MAX_SCRIPT_TIMEOUT_S:
            raise UsageError(what, f"a script cannot take {settings.script_timeout_s} s",
                             f"choose 1 to {MAX_SCRIPT_TIMEOUT_S} seconds")
        if not settings.vm and settings.address:
            raise UsageError(what, "VMs do not share an address", "give --address with --vm")
        _check_freeze(settings, what)


def _check_freeze(settings: GuestSettings, what: str) -> None:
    deadline_s, percent = settings.freeze_deadline_s, settings.applications_percent
    if deadline_s and not MIN_FREEZE_DEADLINE_S <= deadline_s <= MAX_FREEZE_DEADLINE_S:
        raise UsageError(what, f"a guest cannot be frozen for {deadline_s} s",
                         f"choose {MIN_FREEZE_DEADLINE_S} to {MAX_FREEZE_DEADLINE_S} seconds")
    if percent and not MIN_APPLICATIONS_PERCENT <= percent <= MAX_APPLICATIONS_PERCENT:
        raise UsageError(what, f"applications cannot have {percent} % of the time of the freeze",
                         f"choose {MIN_APPLICATIONS_PERCENT} to {MAX_APPLICATIONS_PERCENT} percent")


def _check_credentials(session: Session, job: Job) -> None:
    for settings in job.guests:
        if settings.credential and session.get(CredentialRow, settings.credential) is None:
            raise NotFound(f"credential {settings.credential!r}", "no such credential",
                           "see 'understudy credential list'")


def _check_vms(job: Job, what: str) -> None:
    if not job.vms:
        raise UsageError(what, "no VM is named", "add at least one --vm")
    for vm in job.vms:
        # Where names are not unique, a VM is called by its path in the inventory.
        if not vm.strip("/") or len(vm) > 255 or has_control_characters(vm):
            raise UsageError(what, f"{vm!r} is no VM name", "see 'understudy host vms'")
    if len({job.replica_name(vm) for vm in job.vms}) != len(job.vms):
        raise UsageError(what, "a VM is named twice, or the replicas of two would have the same name",
                         "name each VM once")
    if len(set(job.excluded_disks)) != len(job.excluded_disks):
        raise UsageError(what, "an excluded disk is named twice", "name each disk once")
    for vm, disk in job.excluded_disks:
        if vm not in job.vms or not disk or has_control_characters(disk):
            raise UsageError(what, f"excluded disk '{vm}:{disk}' is not a disk of a VM of this job",
                             "give --exclude-disk VM:DISK with a VM named by --vm")


def _check_references(session: Session, job: Job, what: str) -> None:
    _check_credentials(session, job)
    for source in job.sources:
        host_row(session, source)
    if len(set(job.sources)) != len(job.sources):
        raise UsageError(what, "a source host is named twice", "name each host once")
    host_row(session, job.target)
    datastore = datastore_row(session, job.datastore)
    if datastore.host != job.target:
        raise UsageError(what, f"datastore {job.datastore!r} is on host {datastore.host!r}, not on {job.target!r}",
                         "choose a datastore of the target host")
    if datastore.kind == SNAPSHOTS:
        _check_snapshots(session, job, what)
    _check_proxies(session, job)


def _check_proxies(session: Session, job: Job) -> None:
    for proxy in filter(None, (job.source_proxy, job.target_proxy)):
        proxy_row(session, proxy)


def _check_snapshots(session: Session, job: Job, what: str) -> None:
    """What a datastore whose points are snapshots of the replica VM asks of its jobs."""
    if job.points > MOST_SNAPSHOT_POINTS:
        raise UsageError(what, f"{job.points} restore points cannot be kept as snapshots of one VM",
                         f"choose 1 to {MOST_SNAPSHOT_POINTS}")
    for name in job.sources:
        if urlsplit(host_row(session, name).uri).scheme not in LIBRARY_SCHEMES:
            raise UsageError(what, f"VMs of host {name!r} cannot run on VMware vSphere without conversion",
                             "choose a target of the same platform")
