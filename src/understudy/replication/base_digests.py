"""Making sure that the source side has the digests of what the replica holds (design section 6).

They are kept twice. The source proxy's copy is used if it is intact; else the target's file is copied; if that one is
damaged too, the target proxy recomputes it from the layers, locally, and only digests travel.
"""

from __future__ import annotations

from collections.abc import Sequence

from understudy.context import Context
from understudy.errors import ReplicaError
from understudy.model.transfer import DiskPlan, TransferMode
from understudy.mover import api
from understudy.replication.held import TransferSpec
from understudy.replication.site import Site
from understudy.replication.work import finish


def provide_base_digests(
    ctx: Context, site: Site, ref: api.ReplicaRef, spec: TransferSpec, plans: Sequence[DiskPlan]
) -> None:
    """Give the source proxy intact digests of the base point for every disk that is compared with it."""
    for plan in plans:
        if plan.mode is not TransferMode.FULL:
            _provide(ctx, site, ref, api.DigestRef(spec.replica_id, plan.name, spec.base_point))


def _provide(ctx: Context, site: Site, ref: api.ReplicaRef, wanted: api.DigestRef) -> None:
    if site.source_mover.call(wanted, api.DigestHolding).usable:
        return
    try:
        site.target_mover.copy_digests_to(ref, wanted, site.source_mover)
    except ReplicaError as exc:
        site.journal.warn(f"digests of disk {wanted.disk} at point {wanted.point} were lost on both sides and are "
                          f"recomputed from the replica: {exc}")
        finish(ctx, site.target_mover, api.RebuildDigests(ref, wanted.point, wanted.disk))
        site.target_mover.copy_digests_to(ref, wanted, site.source_mover)
