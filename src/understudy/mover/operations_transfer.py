"""Operations that move disk data; all of them are long."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack

from understudy.context import Context
from understudy.errors import NotFound, ReplicaError, TrackingLost, UsageError
from understudy.faults import fault_point
from understudy.model.job import BLOCK_SIZES
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.arriving import checkpoints
from understudy.mover.audit import audit_of
from understudy.mover.below import Below, Content
from understudy.mover.copier import (
    Copying,
    DiskSink,
    check_base,
    check_since,
    copy_disk,
    doubting,
    known_content,
    plan_of,
    wants_base,
)
from understudy.mover.digest import DigestReader, copy_digests
from understudy.mover.drafts import Draft
from understudy.mover.excluded import masked, masks_of
from understudy.mover.frames import MOST_CONNECTIONS
from understudy.mover.hello import Receiving
from understudy.mover.link import Link
from understudy.mover.meter import Meter
from understudy.mover.reader import Source
from understudy.mover.receive import Reception
from understudy.mover.sampling import check_sample
from understudy.mover.send import send_disk
from understudy.mover.state import Mover
from understudy.mover.work import Function
from understudy.storage.values import NewDisk


def start_copy(mover: Mover, request: api.CopyDisk) -> api.WorkStarted:
    """Copy a disk into a draft of this mover, without a wire."""
    draft = mover.drafts.get(request.draft)
    disk = _check_read(draft, request.read)

    def copy(ctx: Context, meter: Meter) -> None:
        _copy(ctx, mover, draft, disk, request.read, meter)

    return _start(mover, draft, f"copy {disk.name}", copy)


def start_receive(mover: Mover, request: api.ReceiveDisk) -> api.ReceiveStarted:
    """Let the source side of a transfer in."""
    draft = mover.drafts.get(request.draft)
    disk = draft.disk(request.disk, request.size)
    check_block_size(request.block_size)
    admitted: Future[str] = Future()

    def receive(ctx: Context, meter: Meter) -> None:
        try:
            with draft.writing(disk.name, request.block_size) as arriving, _below(mover, draft, disk) as below:
                reception = Reception(_receiving(draft, disk, request), arriving, meter, below)
                admitted.set_result(mover.data.admit(draft.id, reception))
                reception.run(ctx)
        except BaseException as exc:
            if not admitted.done():
                admitted.set_exception(exc)
            raise

    work = _start(mover, draft, f"receive {disk.name}", receive).work
    return api.ReceiveStarted(work, admitted.result(), str(mover.data_socket))


def start_send(mover: Mover, request: api.SendDisk) -> api.WorkStarted:
    """Read a disk and send it to the mover that expects it."""
    read = request.read
    check_block_size(read.block_size)
    masks_of(read)
    if not 1 <= request.connections <= MOST_CONNECTIONS:
        raise UsageError(f"{request.connections} connections for a disk", f"choose 1 to {MOST_CONNECTIONS}")
    began: Future[str] = Future()

    def send(ctx: Context, meter: Meter) -> None:
        link = Link(request.target, mover.credentials, request.patience_s, meter)
        work = began.result()
        mover.links[work] = link
        try:
            _send(ctx, mover, request, meter, link)
        finally:
            del mover.links[work]

    work = mover.works.start(f"send {read.disk}", send, read.replica_id)
    began.set_result(work)
    return api.WorkStarted(work)


def redirect_send(mover: Mover, request: api.RedirectSend) -> api.Nothing:
    """The target side of a transfer is elsewhere now."""
    link = mover.links.get(request.work)
    if link is None:
        raise NotFound(f"work {request.work!r}", "this proxy does not send for it", "the proxy may have been restarted")
    link.redirect(request.target)
    return api.Nothing()


def set_rates(mover: Mover, request: api.SetRates) -> api.Nothing:
    """Replace all rate limits."""
    mover.throttles.set(request.limits)
    return api.Nothing()


def query_work(mover: Mover, request: api.WorkQuery) -> api.WorkStatus:
    """How far a long operation is."""
    return mover.works.status(request.work, request.wait_s)


def cancel_work(mover: Mover, request: api.CancelWork) -> api.Nothing:
    """Stop a long operation."""
    mover.works.cancel(request.work)
    return api.Nothing()


def _start(mover: Mover, draft: Draft, name: str, function: Function) -> api.WorkStarted:
    work = mover.works.start(name, function)
    draft.works.append(work)
    return api.WorkStarted(work)


def _send(ctx: Context, mover: Mover, request: api.SendDisk, meter: Meter, link: Link) -> None:
    read = request.read
    with ExitStack() as stack:
        base = source_base(mover, read)
        if base is not None:
            stack.enter_context(base)
        since = since_digests(stack, mover, read)
        partial = mover.copies.partial_path(api.DigestRef(read.replica_id, read.disk, read.point))
        try:
            with (
                mover.throttles.lane(request.limits, tls=bool(request.target.identity)) as pace,
                mover.exports.explaining(read.source),
            ):
                send_disk(ctx, request, base, partial, meter, link, pace, since)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _copy(ctx: Context, mover: Mover, draft: Draft, new: NewDisk, read: api.ReadSpec, meter: Meter) -> None:
    with mover.exports.explaining(read.source), ExitStack() as stack:
        base = _target_base(mover, draft, read)
        if base is not None:
            stack.enter_context(base)
        start = check_base(read, base)
        tracked = read.mode is TransferMode.INCREMENTAL
        export = Source(read.source, read.size, tracked=tracked, credentials=mover.credentials)
        stack.callback(export.close)
        source = masked(export, read)
        known, since = known_content(read, start), since_digests(stack, mover, read)
        doubted = doubting(known, read, start, since)
        if tracked and start is not None:
            check_sample(ctx, source, read, start, doubted, meter)
        # From here on the layer may hold something: not before, so that a refusal above leaves it to another mode.
        disk = stack.enter_context(draft.writing(read.disk, read.block_size))
        disk.begin(start)
        content = doubting(disk.content(known), read, start, since)
        audit = audit_of(read, source, start, doubted, meter)
        copying = Copying(read, source, content, None, meter, audit=audit)
        plan = plan_of(copying)
        below = stack.enter_context(_below(mover, draft, new))
        with checkpoints(ctx, disk):
            copy_disk(ctx, copying, plan, lambda counters: DiskSink(disk, plan, counters, below), wake=below.stop)
        fault_point("mover.copy.finish")
        disk.finish()
        partial = mover.copies.partial_path(api.DigestRef(read.replica_id, read.disk, read.point))
        copy_digests(disk.writer.path, partial)


def _below(mover: Mover, draft: Draft, disk: NewDisk) -> AbstractContextManager[Content]:
    """What the new layer of ``disk`` lies on; nothing is opened before it is read."""
    leaf = draft.leaves.content(disk.name)
    if leaf is not None:
        return leaf

    def serve() -> AbstractContextManager[api.NbdSource]:
        if not disk.chained:
            raise UsageError(f"read what disk {disk.name!r} lies on", "its layer stands alone")
        return mover.exports.serving(draft.store.image(draft.base_point, disk.name), draft.ref.kind)

    return Below(serve)


def source_base(mover: Mover, read: api.ReadSpec) -> DigestReader | None:
    """The source side's digests of the base point, if a base is wanted."""
    if not wants_base(read):
        return None
    return mover.copies.open(api.DigestRef(read.replica_id, read.disk, read.base_point))


def _target_base(mover: Mover, draft: Draft, read: api.ReadSpec) -> DigestReader | None:
    """As :func:`source_base`; a lost copy is no matter here, because the other one is at hand."""
    try:
        return source_base(mover, read)
    except ReplicaError:
        path = draft.point.base_digest_path(read.disk)
        if path is None:
            raise
        return DigestReader(path)


def since_digests(stack: ExitStack, mover: Mover, read: api.ReadSpec) -> DigestReader | None:
    """The source side's digests of the point since which changes are tracked, if it is not the base point.

    :raises TrackingLost: if they are needed and cannot be had: then changes before the base point may be missing.
    """
    if not read.since_point or read.since_point == read.base_point or read.mode is not TransferMode.INCREMENTAL:
        return None
    try:
        since = mover.copies.open(api.DigestRef(read.replica_id, read.disk, read.since_point))
    except ReplicaError as exc:
        raise TrackingLost(exc.what, exc.why, "use a digest scan") from exc
    stack.enter_context(since)
    check_since(read, since)
    return since


def _check_read(draft: Draft, read: api.ReadSpec) -> NewDisk:
    """Whether reader and draft mean the same disk and base: a delta on another base would be wrong everywhere.

    :raises UsageError: if not.
    """
    disk = draft.disk(read.disk, read.size)
    check_block_size(read.block_size)
    masks_of(read)
    if read.chained != disk.chained or read.point != draft.point_id:
        raise UsageError(f"copy disk {read.disk!r}", "the draft's layer is of another kind or point")
    if read.chained and read.base_point and read.base_point != draft.base_point:
        raise UsageError(f"copy disk {read.disk!r}", f"the layer lies on {draft.base_point!r}, not {read.base_point!r}")
    return disk


def check_block_size(block_size: int) -> None:
    """:raises UsageError: if it is none that a job may have."""
    if block_size not in BLOCK_SIZES.values():
        raise UsageError(f"block size {block_size}", "not supported", f"use one of {', '.join(BLOCK_SIZES)}")


def _receiving(draft: Draft, disk: NewDisk, request: api.ReceiveDisk) -> Receiving:
    base = draft.point.base_digest_path(disk.name) if disk.chained else None
    return Receiving(
        request.source_identity, draft.point_id, disk.name, disk.size, request.block_size, disk.chained,
        draft.base_point, base, request.patience_s,
    )
