"""Operations that check what a replica holds, and remember the outcome beside it; all of them are long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from understudy.model.extent import span, subtract, unite
from understudy.model.health import DiskHealth, health_of
from understudy.model.replica import PointDisk, RestorePoint
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.digest import DigestHeader, DigestReader
from understudy.mover.drafts import store_of
from understudy.mover.meter import Meter
from understudy.mover.pace import Pace
from understudy.mover.state import Mover
from understudy.mover.verified import verified_disk
from understudy.mover.verify import Found, Pass, block_matches, rebuild_digests, verify_disk
from understudy.mover.work import VERIFYING
from understudy.storage import ReplicaStore
from understudy.units import block_count

#: Where reading fails, so many blocks are looked at one by one.
STEP_BLOCKS = 16


def start_verify(mover: Mover, request: api.VerifyPoint) -> api.WorkStarted:
    """Compare a point's content with its digests."""
    store = store_of(request.ref)
    exports = {export.disk.name: export for export in request.exports}
    for disk in store.load().point(request.point).disks:
        _serving(mover, store, request.ref.kind, request.point, disk.name, exports.get(disk.name))

    def verify(ctx: Context, meter: Meter) -> tuple[api.VerifiedDisk, ...]:
        with store.verifying():
            # Asked again: nobody retires the point from here on.
            point = store.load().point(request.point)
            pending = begin_pass(store, point, restart=request.restart)
            meter.total = sum(disk.size for disk in pending)
            problems = {}
            for disk in pending:
                serve = functools.partial(
                    _serving, mover, store, request.ref.kind, point.id, disk.name, exports.get(disk.name))
                part = _Part(store, point, disk, serve, Pace(request.rate))
                problems[disk.name] = _verify(ctx, part, meter)
        known = store.health()
        return tuple(verified_disk(known, point, disk, problems.get(disk.name, "")) for disk in point.disks)

    return api.WorkStarted(mover.works.start(f"verify {request.ref.name}", verify, VERIFYING))


def start_rebuild(mover: Mover, request: api.RebuildDigests) -> api.WorkStarted:
    """Recompute the digest file of a point's disk."""
    store = store_of(request.ref)
    point = store.load().point(request.point)
    disk = point.disk(request.disk)
    if disk is None:
        raise UsageError(f"restore point {request.point!r}", f"it has no disk {request.disk!r}")
    header = DigestHeader(point.id, disk.size, point.block_size)
    serving = _serving(mover, store, request.ref.kind, point.id, disk.name, request.export)

    def rebuild(ctx: Context, meter: Meter) -> None:
        digest = store.digest_path(point.id, disk.name)
        # First: digests that bless what is damaged must never be taken for those of the source.
        store.change_health(point.id, disk.name, lambda known: replace(known, problem="", digests_recomputed_at=_now()))
        with serving as where:
            rebuild_digests(ctx, where, header, digest, meter)

    return api.WorkStarted(mover.works.start(f"rebuild {request.ref.name}", rebuild))


def _serving(
    mover: Mover, store: ReplicaStore, kind: str, point: str, disk: str, export: LibraryExport | None
) -> AbstractContextManager[api.NbdSource]:
    """A disk of a point is served inside the context: its image, or through ``export`` if the store holds none.

    :raises Refused: if nothing says how to read it.
    :raises UsageError: if ``export`` is given for a disk of which the store holds an image.
    """
    if export is None:
        return mover.exports.serving(store.image(point, disk), kind)
    if store.holds_images or export.disk.name != disk:
        raise UsageError(f"read disk {disk!r} of restore point {point!r}", "it is not read through a disk library")
    return mover.exports.serving_library(export)


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
    """One disk of a point that is verified.

    :ivar serve: serves it for as long as it is read.
    """

    store: ReplicaStore
    point: RestorePoint
    disk: PointDisk
    serve: Callable[[], AbstractContextManager[api.NbdSource]]
    pace: Pace

    def wanted(self) -> Pass:
        """What is left of the pass, by what is remembered."""
        known = health_of(self.store.health(), self.point.id, self.disk.name)

        def save(found: Found) -> None:
            found_at = _now() if subtract(found.bad, known.bad) else known.found_at if found.bad else ""
            self.note(position=found.position, bad=found.bad, bad_blocks=found.bad_blocks, found_at=found_at)

        return Pass(known.position, known.bad, bool(known.digests_recomputed_at), self.pace, save)

    def note(self, **changes: object) -> None:
        """Remember something of it."""
        self.store.change_health(self.point.id, self.disk.name, lambda known: _changed(known, changes))


def _changed(known: DiskHealth, changes: dict[str, object]) -> DiskHealth:
    return DiskHealth(**{**vars(known), **changes})


def _verify(ctx: Context, part: _Part, meter: Meter) -> str:
    """Look at what is left of a disk; why that was not possible, or empty.

    What makes a disk unreadable is its outcome; the other disks still count.
    """
    try:
        _pass(ctx, part, meter)
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


def _pass(ctx: Context, part: _Part, meter: Meter) -> None:
    """Look at what is left of a disk.

    :raises TransferError: if there is nobody to read it from.
    """
    with DigestReader(part.store.digest_path(part.point.id, part.disk.name)) as digests:
        if (digests.header.point, digests.header.size) != (part.point.id, part.disk.size):
            raise ReplicaError(f"digest file {digests.path}", "it is of another point or size")
        done = False
        while not done:
            try:
                with part.serve() as where:
                    verify_disk(ctx, where, digests, meter, part.wanted())
                done = True
            except TransferError:
                _step_over(ctx, part, digests)


def _step_over(ctx: Context, part: _Part, digests: DigestReader) -> None:
    """Look one by one at the blocks near which reading failed; those that cannot be read are damaged.

    :raises TransferError: if there is nobody to read from.
    """
    for _ in range(STEP_BLOCKS):
        wanted, size, block_size = part.wanted(), part.disk.size, digests.header.block_size
        if wanted.position >= size:
            return
        ctx.check()
        index = wanted.position // block_size
        block = span(index * block_size, min((index + 1) * block_size, size))
        wanted.pace.wait(ctx, block.length)
        with part.serve() as where:
            good = block_matches(where, digests, index)
        bad = wanted.bad if wanted.keep_bad else subtract(wanted.bad, [block])
        bad = bad if good else unite(bad, [block])
        wanted.save(Found(block.end, tuple(bad), sum(block_count(item.length, block_size) for item in bad)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
