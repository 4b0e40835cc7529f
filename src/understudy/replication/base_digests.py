"""Making sure that the source side has the digests of what the replica holds (design section 6).

They are kept twice. The source proxy's copy is used if it is intact; else the target's file is copied; if that one is
damaged too, the target proxy recomputes it from the layers, locally, and only digests travel. Each pass that takes
time says why it is made and how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from understudy.context import Context
from understudy.errors import NotFound, ReplicaError
from understudy.model.session import DiskReport
from understudy.model.snapshot import LibraryExport
from understudy.model.transfer import DiskPlan, Reason, TransferMode
from understudy.mover import api
from understudy.replication.held import TransferSpec
from understudy.replication.planning import without_tracking
from understudy.replication.site import Site
from understudy.replication.work import finish
from understudy.units import format_seconds

#: Told what is done, and of how much.
Progress = Callable[[int, int], None]
#: How the target proxy reads ``(disk, point)``: by an export, or None if it has it in files.
Reading = Callable[[str, str], LibraryExport | None]


def _in_files(_disk: str, _point: str) -> None:
    """The target proxy has the layers."""


def provide_base_digests(
    ctx: Context, site: Site, ref: api.ReplicaRef, spec: TransferSpec, plans: Sequence[DiskPlan],
    reading: Reading = _in_files,
) -> tuple[DiskPlan, ...]:
    """Give the source proxy intact digests of the base point for every disk that is compared with it.

    An incremental disk whose changes are tracked since an older point gets that point's digests too.

    :param reading: how the target proxy reads a disk at a point.
    :return: the plans; if the older point's digests are lost, the disk is scanned.
    """
    return tuple(_provided(ctx, site, ref, spec, plan, reading) for plan in plans)


def _provided(
    ctx: Context, site: Site, ref: api.ReplicaRef, spec: TransferSpec, plan: DiskPlan, reading: Reading
) -> DiskPlan:
    if plan.mode is TransferMode.FULL:
        return plan
    _provide_base(ctx, site, ref, api.DigestRef(spec.replica_id, plan.name, spec.base_point), plan, reading)
    if plan.mode is not TransferMode.INCREMENTAL or plan.since_point in ("", spec.base_point):
        return plan
    older = api.DigestRef(spec.replica_id, plan.name, plan.since_point)
    try:
        _fetch(site, ref, older, plan)
    except (NotFound, ReplicaError) as exc:
        site.journal.warn(f"disk {plan.name} is compared whole: its changes are tracked since point {older.point}, "
                          f"whose digests are lost: {exc}")
        (plan,) = without_tracking((plan,), Reason.NO_BASELINE)
    return plan


def _provide_base(
    ctx: Context, site: Site, ref: api.ReplicaRef, wanted: api.DigestRef, plan: DiskPlan, reading: Reading
) -> None:
    try:
        _fetch(site, ref, wanted, plan)
    except ReplicaError as exc:
        site.journal.warn(f"digests of disk {wanted.disk} at point {wanted.point} were lost on both sides and are "
                          f"recomputed from the replica: {exc}")
        why = f"digests of point {wanted.point} were lost on both sides: recomputing them from the replica"
        with _told(site, plan, why) as tell:
            request = api.RebuildDigests(ref, wanted.point, wanted.disk, reading(wanted.disk, wanted.point))
            finish(ctx, site.target_mover, request, lambda progress: tell(progress.processed, progress.total))
        _copy(site, ref, wanted, plan)


def _fetch(site: Site, ref: api.ReplicaRef, wanted: api.DigestRef, plan: DiskPlan) -> None:
    """See that the source proxy has them.

    :raises ReplicaError: if it has not, and the file at the target is damaged.
    """
    if not site.source_mover.call(wanted, api.DigestHolding).usable:
        _copy(site, ref, wanted, plan)


def _copy(site: Site, ref: api.ReplicaRef, wanted: api.DigestRef, plan: DiskPlan) -> None:
    why = f"proxy {site.source_proxy.name!r} has no digests of point {wanted.point}: copying them from the target"
    with _told(site, plan, why) as tell:
        site.target_mover.copy_digests_to(ref, wanted, site.source_mover, tell)


@contextmanager
def _told(site: Site, plan: DiskPlan, why: str) -> Iterator[Progress]:
    """Inside the context the session shows why the disk waits, and how far that is."""
    report = DiskReport(plan.name, plan.mode, plan.reason, plan.size, transport=site.transport)
    began = time.monotonic()

    def tell(done: int, whole: int) -> None:
        waiting = why + _progress(done, whole, time.monotonic() - began)
        site.journal.disk(replace(report, waiting=waiting), final=False)

    site.journal.disk(replace(report, waiting=why), final=True)
    try:
        yield tell
    finally:
        site.journal.disk(report, final=True)


def _progress(done: int, whole: int, seconds: float) -> str:
    """How far it is and how long it takes, for the end of a sentence; empty if nobody knows."""
    if not 0 < done <= whole:
        return ""
    return f", {100 * done // whole} %, {format_seconds(seconds * (whole - done) / done)} left"
