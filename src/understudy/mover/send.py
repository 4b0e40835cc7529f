"""Send: the source side of a transfer between two movers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from understudy.context import Context
from understudy.model.transfer import TransferMode
from understudy.mover.api import SendDisk
from understudy.mover.audit import audit_of
from understudy.mover.base import BaseDigests
from understudy.mover.claims import Claims
from understudy.mover.copier import Copying, check_base, copy_disk, doubting, known_content, plan_of
from understudy.mover.crew import Crew
from understudy.mover.digest import DigestHeader, DigestReader, DigestWriter
from understudy.mover.excluded import masked
from understudy.mover.link import Link
from understudy.mover.meter import Meter
from understudy.mover.outgoing import Outgoing
from understudy.mover.reader import Source
from understudy.mover.sampling import check_sample
from understudy.mover.wire import Pace


def send_disk(
    ctx: Context, request: SendDisk, base: DigestReader | None, digest_path: Path, meter: Meter, link: Link,
    pace: Pace, since: DigestReader | None = None,
) -> None:
    """Read a disk and send what changed; at return everything is durable on the target.

    :param base: the source side's digests of the base point.
    :param digest_path: where the source side's digest file of the new point is written.
    :param pace: how fast all connections together may send.
    :param since: the source side's digests of the point since which changes are tracked, if it is another one.
    :raises TrackingLost: if the dirty map cannot be used; nothing was sent then.
    :raises TransferError: if reading or sending fails, or the target reports an error (then as that error).
    """
    read = request.read
    start = check_base(read, base)
    header = DigestHeader(read.point, read.size, read.block_size)
    with ExitStack() as stack:
        tracked = read.mode is TransferMode.INCREMENTAL
        export = Source(read.source, read.size, tracked=tracked, credentials=link.credentials)
        stack.callback(export.close)
        source = masked(export, read)
        known = known_content(read, start)
        doubted = doubting(known, read, start, since)
        if tracked and start is not None:
            check_sample(ctx, source, read, start, doubted, meter)
        outgoing = Outgoing(ctx, request, link, start, pace)
        stack.callback(outgoing.close)
        claims = _with_claims(ctx, stack, outgoing, known, header, digest_path)
        content = doubting(claims, read, start, since)
        digests = stack.enter_context(DigestWriter(digest_path, header, start))
        audit = audit_of(read, source, start, doubted, meter)
        copying = Copying(read, source, content, digests, meter, request.connections, audit)
        plan = plan_of(copying, concluded=True)
        outgoing.begin(plan, digests)
        copy_disk(ctx, copying, plan, outgoing.lane, beside=[outgoing.listen], wake=outgoing.stop)


def _with_claims(
    ctx: Context, stack: ExitStack, outgoing: Outgoing, below: BaseDigests, header: DigestHeader, digest_path: Path
) -> BaseDigests:
    """What may be assumed of the replica's content, with what the target has of the new layer already."""
    path = digest_path.with_name(digest_path.name + ".claims")
    keep = stack.enter_context(DigestWriter(path, header))
    stack.callback(path.unlink, missing_ok=True)
    claims = Claims(below, header.size, header.block_size, lambda index: keep.read(index, 1))
    Crew(ctx, "claims", outgoing.stop).run([lambda: outgoing.open_answers(claims, keep)])
    return claims if len(claims.touched) else below
