"""Operations that check what a replica holds, and remember the outcome beside it; all of them are long."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from understudy.context import Context
from understudy.errors import (
    Cancelled,
    DatastoreError,
    NotFound,
    ReplicaError,
    TransferError,
    UnderstudyError,
    UsageError,
)
from understudy.model.extent import subtract
from understudy.model.health import DiskHealth, health_of
from understudy.model.replica import PointDisk, RestorePoint
from understudy.mover import api
from understudy.mover.digest import DigestHeader, DigestReader
from understudy.mover.drafts import store_of
from understudy.mover.meter import Meter
from understudy.mover.pace import Pace
from understudy.mover.state import Mover
from understudy.mover.verified import verified_disk
from understudy.mover.verify import Found, Pass, rebuild_digests, verify_disk
from understudy.storage import ReplicaStore


def start_verify(mover: Mover, request: api.VerifyPoint) -> api.WorkStarted:
    """Compare a point's content with its digests."""
    store = store_of(request.ref)
    store.load().point(request.point)

    def verify(ctx: Context, meter: Meter) -> tuple[api.VerifiedDisk, ...]:
        with store.verifying():
            # Asked again: nobody retires the point from here on.
            point = store.load().point(request.point)
            pending = begin_pass(store, point, restart=request.restart)
            meter.total = sum(disk.size for disk in pending)
            problems = {}
            for disk in pending:
                part = _Part(store, point, disk, request.ref.kind, Pace(request.rate))
                problems[disk.name] = _verify(ctx, mover, part, meter)
        known = store.health()
        return tuple(verified_disk(known, point, disk, problems.get(disk.name, "")) for disk in point.disks)

    return api.WorkStarted(mover.works.start(f"verify {request.ref.name}", verify))


def start_rebuild(mover: Mover, request: api.RebuildDigests) -> api.WorkStarted:
    """Recompute the digest file of a point's disk."""
    store = store_of(request.ref)
    point = store.load().point(request.point)
    disk = point.disk(request.disk)
    if disk is None:
        raise UsageError(f"restore point {request.point!r}", f"it has no disk {request.disk!r}")
    header = DigestHeader(point.id, disk.size, point.block_size)

    def rebuild(ctx: Context, meter: Meter) -> None:
        image, digest = store.image(point.id, disk.name), store.digest_path(point.id, disk.name)
        # First: digests that bless what is damaged must never be taken for those of the source.
        store.change_health(point.id, disk.name, lambda known: replace(known, problem="", digests_recomputed_at=_now()))
        with mover.exports.serving(image, request.ref.kind) as where:
            rebuild_digests(ctx, where, header, digest, meter)

    return api.WorkStarted(mover.works.start(f"rebuild {request.ref.name}", rebuild))


def begin_pass(store: ReplicaStore, point: RestorePoint, *, restart: bool) -> Sequence[PointDisk]:
    """The disks that are left of the pass over ``point`` that is under way; all of them, of a new one, if none is."""
    known = store.health()
    left = [disk for disk in point.disks if health_of(known, point.id, disk.name).started_at]
    if left and not restart:
        return left
    started_at = _now()
    for disk in point.disks:
        store.change_health(point.id, disk.name, lambda item: replace(item, started_at=started_at, position=0))
    return point.disks


@dataclass(frozen=True)
class _Part:
    """One disk of a point that is verified."""

    store: ReplicaStore
    point: RestorePoint
    disk: PointDisk
    kind: str
    pace: Pace

    def note(self, **changes: object) -> None:
        """Remember something of it."""
        self.store.change_health(self.point.id, self.disk.name, lambda known: _changed(known, changes))


def _changed(known: DiskHealth, changes: dict[str, object]) -> DiskHealth:
    return DiskHealth(**{**vars(known), **changes})


def _verify(ctx: Context, mover: Mover, part: _Part, meter: Meter) -> str:
    """Look at what is left of a disk; why that was not possible, or empty.

    What makes a disk unreadable is its outcome; the other disks still count.
    """
    try:
        _pass(ctx, mover, part, meter)
    except (Cancelled, DatastoreError, NotFound):
        raise
    except UnderstudyError as exc:
        ctx.check()
        if isinstance(exc, TransferError):  # its place is kept: what was read is not read again
            part.note(problem=str(exc))
        elif isinstance(exc, ReplicaError):
            part.note(problem=str(exc), started_at="", position=0)
        return str(exc)
    part.note(problem="", started_at="", position=0, verified_at=_now())
    return ""


def _pass(ctx: Context, mover: Mover, part: _Part, meter: Meter) -> None:
    store, point, name = part.store, part.point, part.disk.name
    known = health_of(store.health(), point.id, name)
    with ExitStack() as stack:
        digests = stack.enter_context(DigestReader(store.digest_path(point.id, name)))
        if (digests.header.point, digests.header.size) != (point.id, part.disk.size):
            raise ReplicaError(f"digest file {digests.path}", "it is of another point or size")
        where = stack.enter_context(mover.exports.serving(store.image(point.id, name), part.kind))

        def save(found: Found) -> None:
            found_at = _now() if subtract(found.bad, known.bad) else known.found_at if found.bad else ""
            part.note(position=found.position, bad=found.bad, bad_blocks=found.bad_blocks, found_at=found_at)

        wanted = Pass(known.position, known.bad, bool(known.digests_recomputed_at), part.pace, save)
        verify_disk(ctx, where, digests, meter, wanted)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
