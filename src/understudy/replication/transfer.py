"""Steps 5 to 7 for all disks of a VM: start the transfers, follow them, and say what each one did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from understudy.context import Context
from understudy.errors import UnderstudyError, from_fields
from understudy.faults import fault_point
from understudy.model.job import Job
from understudy.model.session import DiskReport
from understudy.model.snapshot import ImageDisk, ServedDisk, SourceSnapshot
from understudy.model.transfer import DiskPlan
from understudy.mover import api
from understudy.replication.site import Lease, Site

_POLL_S = 0.1
# How long the other end of a lost connection may take to say why it went.
_LAST_WORDS_S = 3.0


@dataclass(frozen=True)
class TransferSpec:
    """What the transfers of one task share.

    :ivar base_point: the point that the target has, or empty.
    """

    job: Job
    replica_id: str
    base_point: str
    point: str


@dataclass(frozen=True)
class Transferred:
    """A disk transfer that succeeded, with the busy seconds of each part."""

    report: DiskReport
    busy: dict[str, float]


def send_seconds(transfers: Sequence[Transferred]) -> float:
    """Busy seconds between the proxies, over all disks."""
    return sum(transfer.busy.get("network", 0.0) for transfer in transfers)


@dataclass
class _Transfer:
    """One disk under way: the work at the source mover and, with a wire, the work at the target mover."""

    plan: DiskPlan
    source_work: str
    target_work: str
    report: DiskReport
    busy: dict[str, float] = field(default_factory=dict)
    ended: bool = False


def copy_disks(
    ctx: Context,
    site: Site,
    spec: TransferSpec,
    draft: str,
    snapshot: SourceSnapshot,
    plans: Sequence[DiskPlan],
    lease: Lease,
) -> tuple[Transferred, ...]:
    """Transfer every disk, as many at a time as the lease gives; returns when all are durable on the target.

    :raises UnderstudyError: of the first disk that fails, after all others were stopped.
    """
    with ExitStack() as exports:
        sources = {disk.name: _open(site, disk, spec, exports) for disk in snapshot.disks}
        waiting, active, done = list(plans), list[_Transfer](), list[_Transfer]()
        try:
            while waiting or active:
                while waiting and not lease.take():
                    active.append(_start(ctx, site, spec, draft, waiting.pop(0), sources))
                ctx.check()
                if not active:
                    ctx.cancel.wait(_POLL_S)
                _follow(site, active)
                for transfer in active:
                    if transfer.ended:
                        done.append(transfer)
                        lease.give_back()
                active = [transfer for transfer in active if not transfer.ended]
        except BaseException:
            for transfer in active:
                _stop(ctx, site, transfer)
            raise
    return tuple(Transferred(transfer.report, transfer.busy) for transfer in done)


def _open(site: Site, disk: ServedDisk | ImageDisk, spec: TransferSpec, exports: ExitStack) -> api.NbdSource:
    if isinstance(disk, ServedDisk):
        return api.NbdSource(disk.socket, disk.export, disk.dirty_context, disk.address)
    request = api.OpenExport(disk.image, disk.image_format, disk.bitmap, f"{spec.point}-{disk.name}")
    opened = site.source_mover.call(request, api.OpenedExport)
    exports.callback(site.source_mover.call, api.CloseExport(opened.id), api.Nothing)
    return opened.source


def _start(
    ctx: Context, site: Site, spec: TransferSpec, draft: str, plan: DiskPlan, sources: dict[str, api.NbdSource]
) -> _Transfer:
    read = api.ReadSpec(
        source=sources[plan.name], disk=plan.name, size=plan.size, mode=plan.mode, block_size=spec.job.block_size,
        chained=plan.chained, replica_id=spec.replica_id, base_point=spec.base_point if plan.chained else "",
        point=spec.point,
    )
    report = DiskReport(name=plan.name, mode=plan.mode, reason=plan.reason, size=plan.size)
    if site.same_mover:
        started = site.source_mover.call(api.CopyDisk(read, draft), api.WorkStarted)
        return _Transfer(plan, started.work, "", report)
    receive = api.ReceiveDisk(draft, plan.name, plan.size, spec.job.block_size)
    receiving = site.target_mover.call(receive, api.ReceiveStarted)
    send = api.SendDisk(read, receiving.socket, receiving.ticket, spec.job.compression)
    transfer = _Transfer(plan, "", receiving.work, report)
    try:
        transfer.source_work = site.source_mover.call(send, api.WorkStarted).work
    except BaseException:
        _stop(ctx, site, transfer)
        raise
    return transfer


def _follow(site: Site, active: list[_Transfer]) -> None:
    """Look at each transfer once, waiting a moment in all; a failed one raises."""
    for transfer in active:
        wait_s = _POLL_S / len(active)
        status = site.source_mover.call(api.WorkQuery(transfer.source_work, wait_s), api.WorkStatus)
        ended = status.state is not api.WorkState.RUNNING
        transfer.busy = dict(status.progress.busy or {})
        if transfer.target_work:
            # With the source end done, wait for the target end: it is asked again and again otherwise.
            wait_s = wait_s if ended else 0.0
            far = site.target_mover.call(api.WorkQuery(transfer.target_work, wait_s), api.WorkStatus)
            status, far = _last_words(site, transfer, status, far)
            ended = ended and far.state is not api.WorkState.RUNNING
            for part, seconds in (far.progress.busy or {}).items():
                transfer.busy[part] = transfer.busy.get(part, 0.0) + seconds
            _raise_failure(status, far)
        _raise_failure(status)
        _update(site, transfer, status, ended)
        if transfer.report.processed_bytes:
            fault_point("read.middle")


def _last_words(
    site: Site, transfer: _Transfer, near: api.WorkStatus, far: api.WorkStatus
) -> tuple[api.WorkStatus, api.WorkStatus]:
    """Both ends; one that only says that it lost the other is not believed before the other was heard."""
    if _lost_the_other(near) and far.state is api.WorkState.RUNNING:
        far = site.target_mover.call(api.WorkQuery(transfer.target_work, _LAST_WORDS_S), api.WorkStatus)
    elif _lost_the_other(far) and near.state is api.WorkState.RUNNING:
        near = site.source_mover.call(api.WorkQuery(transfer.source_work, _LAST_WORDS_S), api.WorkStatus)
    return near, far


def _lost_the_other(end: api.WorkStatus) -> bool:
    return end.error is not None and end.error.code == "transfer"


def _raise_failure(*statuses: api.WorkStatus) -> None:
    """Raise what made a transfer fail: of two failed ends the one that did not merely lose the other."""
    errors = [status.error for status in statuses if status.error is not None]
    if errors:
        cause = next((error for error in errors if error.code != "transfer"), errors[0])
        raise from_fields(cause.code, cause.what, cause.why, cause.todo)


def _update(site: Site, transfer: _Transfer, status: api.WorkStatus, ended: bool) -> None:
    progress = status.progress
    transfer.report = replace(
        transfer.report,
        read_bytes=progress.read, sent_bytes=progress.sent, wire_bytes=progress.wire, zero_bytes=progress.zero,
        processed_bytes=progress.processed, seconds=round(status.seconds, 3), bottleneck=_bottleneck(transfer.busy),
    )
    transfer.ended = ended
    site.journal.disk(transfer.report, ended)


def _bottleneck(busy: dict[str, float]) -> str:
    return max(busy, key=lambda part: busy[part]) if busy else ""


def _stop(ctx: Context, site: Site, transfer: _Transfer) -> None:
    """Stop both ends of a transfer; a mover that is gone has stopped already."""
    ends = [(site.source_mover, transfer.source_work), (site.target_mover, transfer.target_work)]
    for mover, work in ends:
        if work:
            try:
                mover.call(api.CancelWork(work), api.Nothing)
            except UnderstudyError as exc:
                ctx.log(__name__).warning("stop of disk %s: %s", transfer.plan.name, exc)
