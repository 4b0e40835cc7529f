"""Rebuild: the record of a replica is lost; what its files show is proved point by point, then recorded."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from understudy.context import Context
from understudy.errors import PlatformError, ReplicaError, UnderstudyError
from understudy.model.replica import PointDisk
from understudy.mover import api
from understudy.mover.digest import DigestReader
from understudy.mover.drafts import store_of
from understudy.mover.meter import Meter
from understudy.mover.state import Mover
from understudy.mover.verify import Pass, verify_disk
from understudy.storage import Salvage
from understudy.storage.values import DigestFacts, RebuiltReplica


def start_rebuild_replica(mover: Mover, request: api.RebuildReplica) -> api.WorkStarted:
    """Make the record of a replica again; nobody else can own the replica meanwhile."""

    def rebuild(ctx: Context, meter: Meter) -> RebuiltReplica:
        store = store_of(request.ref)
        with store.lock(request.attempt):
            salvage = store.salvage(digest_facts, request.known)
            prove_points(ctx, mover, request.ref.kind, salvage, meter)
            return salvage.rebuilt(write=not request.dry_run)

    return api.WorkStarted(mover.works.start(f"rebuild {request.ref.name}", rebuild))


def digest_facts(path: Path) -> DigestFacts | None:
    """What a digest file says of itself; None if it is damaged."""
    try:
        with DigestReader(path) as reader:
            return DigestFacts(reader.header.point, reader.header.size, reader.header.block_size)
    except ReplicaError:
        return None


def prove_points(ctx: Context, mover: Mover, kind: str, salvage: Salvage, meter: Meter) -> None:
    """Compare every point that the files may show with its digests, the newest first; refute those that differ.

    :raises PlatformError: if an image cannot be read for a reason that is not in the image.
    """
    proved: set[tuple[str, PointDisk]] = set()
    while claims := [(point.id, disk) for point in salvage.points() for disk in point.disks
                     if (point.id, disk) not in proved]:
        meter.total = meter.sums().processed + sum(disk.size for _, disk in claims)
        point, disk = claims[-1]
        why = _refutation(ctx, mover, kind, salvage, disk, meter)
        if why:
            salvage.refute(point, f"disk {disk.name}: {why}")
        else:
            proved.add((point, disk))


def _refutation(ctx: Context, mover: Mover, kind: str, salvage: Salvage, disk: PointDisk, meter: Meter) -> str:
    """Why the digests of a disk are not those of what its layer shows; empty if they are."""
    try:
        with ExitStack() as stack:
            digests = stack.enter_context(DigestReader(salvage.digest_path(disk)))
            where = stack.enter_context(mover.exports.serving(salvage.image(disk), kind))
            found = verify_disk(ctx, where, digests, meter, Pass())
            blocks = digests.header.blocks
    except PlatformError as exc:
        if exc.todo:
            raise  # something to do on this host: the image need not be damaged
        return str(exc)
    except UnderstudyError as exc:
        ctx.check()
        return str(exc)
    return f"{found.bad_blocks} of {blocks} blocks are not what its digests say" if found.bad_blocks else ""
