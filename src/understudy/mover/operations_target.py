"""Operations of the target side: datastores, replicas, restore points."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

from understudy.context import Context
from understudy.errors import Refused, ReplicaError
from understudy.faults import fault_point
from understudy.model.replica import Replica
from understudy.mover import api
from understudy.mover.drafts import ORPHANED_S, store_of
from understudy.mover.leaves import refuse_unsealed
from understudy.mover.meter import Meter
from understudy.mover.state import Mover
from understudy.mover.work import CONVERTING, VERIFYING
from understudy.storage import ReplicaStore, list_replicas
from understudy.storage.marker import make_marker, read_marker
from understudy.storage.values import DatastoreFacts, HeadFacts

LOG = logging.getLogger(__name__)


def check_datastore(_mover: Mover, request: api.CheckDatastore) -> api.DatastoreAnswer:
    """Facts about a datastore directory; a directory that is missing or read-only is a fact, not an error."""
    path = Path(request.path)
    if not path.is_dir():
        facts = DatastoreFacts(request.path, exists=False, writable=False, total_bytes=0, free_bytes=0)
        return api.DatastoreAnswer(facts)
    space = os.statvfs(path)
    facts = DatastoreFacts(
        request.path, exists=True, writable=_can_write(path), total_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize, marker=read_marker(path),
    )
    return api.DatastoreAnswer(facts)


def mark_datastore(_mover: Mover, request: api.MarkDatastore) -> api.DatastoreMarker:
    """Give a datastore a marker file if it has none."""
    return api.DatastoreMarker(make_marker(Path(request.path)))


def _can_write(directory: Path) -> bool:
    probe = directory / f".understudy-probe-{uuid.uuid4().hex}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"probe")
            os.fsync(fd)
        finally:
            os.close(fd)
            probe.unlink()
    except OSError:
        return False
    return True


def query_replicas(_mover: Mover, request: api.ListReplicas) -> api.ReplicaNames:
    """Names of the replicas in a datastore."""
    return api.ReplicaNames(tuple(list_replicas(request.kind, Path(request.datastore))))


def inspect_replica(_mover: Mover, request: api.InspectReplica) -> api.ReplicaFacts:
    """Everything known of one replica."""
    store = store_of(request.ref)
    problem = store.problem()
    if problem:
        return api.ReplicaFacts(None, None, store.last_attempt(), {}, {}, {}, problem=problem)
    if not store.exists():
        return api.ReplicaFacts(None, None, store.last_attempt(), {}, {}, {})
    replica = store.load()
    damage = {point.id: store.damage(point.id) for point in replica.points}
    losses = {point.id: store.losses(point.id) for point in replica.points}
    head = store.head()
    return api.ReplicaFacts(
        replica, head, store.last_attempt(), {point: found for point, found in damage.items() if found},
        _paths(replica, store, digests=False), _paths(replica, store, digests=True),
        _head_definition(store, replica, head), store.health(),
        losses={point: found for point, found in losses.items() if found},
    )


def read_exclusions(_mover: Mover, request: api.ReadExclusions) -> api.PointExclusions:
    """What the disks of a point leave out."""
    return api.PointExclusions(store_of(request.ref).exclusions(request.point))


def _head_definition(store: ReplicaStore, replica: Replica, head: HeadFacts) -> str:
    """The definition stored with the point under the head; empty if there is none, or it is lost."""
    if all(point.id != head.point for point in replica.points):
        return ""
    try:
        return store.definition(head.point)
    except ReplicaError as exc:
        LOG.warning("%s", exc)  # a loss of the point, told as such
        return ""


def _paths(replica: Replica, store: ReplicaStore, *, digests: bool) -> dict[str, dict[str, str]]:
    if not digests and not store.holds_images:
        return {}
    path_of = store.digest_path if digests else store.image
    return {
        point.id: {disk.name: str(path_of(point.id, disk.name)) for disk in point.disks} for point in replica.points
    }


def begin_point(mover: Mover, request: api.BeginPoint) -> api.DraftOpened:
    """Lock a replica and begin a restore point; an older attempt whose controller is gone has to give way."""
    for older in mover.drafts.superseded(request.ref, request.attempt):
        end_draft(mover, older.id, keep=True)
    draft, swept = mover.drafts.begin(request)
    return api.DraftOpened(draft.id, tuple(swept))


def attach_disks(mover: Mover, request: api.AttachDisks) -> api.Nothing:
    """Write the disks of a draft to leaves of the replica VM."""
    mover.drafts.get(request.draft).attach(mover.exports, request.leaves)
    return api.Nothing()


def seal_point(mover: Mover, request: api.SealPoint) -> api.Nothing:
    """Every disk of a draft is complete: let go of the leaves."""
    mover.drafts.get(request.draft).seal()
    return api.Nothing()


def query_draft(mover: Mover, request: api.DraftQuery) -> api.DraftHolding:
    """Whether a draft is held."""
    return api.DraftHolding(mover.drafts.is_held(request.draft))


def publish_point(mover: Mover, request: api.PublishPoint) -> api.PublishedPoint:
    """Publish a draft whose transfers all succeeded."""
    draft = mover.drafts.get(request.draft)
    unfinished = draft.unfinished()
    if unfinished or request.meta.id != draft.point_id:
        why = f"disks without a successful transfer: {', '.join(unfinished)}" if unfinished else "it has another id"
        raise Refused(f"publish restore point {request.meta.id!r}", why)
    refuse_unsealed(f"publish restore point {request.meta.id!r}", draft.leaves)
    with draft.acting():
        fault_point("mover.publish.before")
        point = draft.point.publish(request.meta)
        fault_point("mover.publish.after")
    return api.PublishedPoint(point)


def release_draft(mover: Mover, request: api.ReleaseDraft) -> api.Nothing:
    """End with a draft; transfers that still write to it are stopped first."""
    if request.draft in mover.drafts.ids():
        end_draft(mover, request.draft, keep=request.keep)
    return api.Nothing()


def release_orphans(mover: Mover) -> None:
    """End what dead controllers began, so that its locks keep nobody from the replicas; what was done is kept."""
    for orphan in mover.drafts.orphaned():
        LOG.warning("draft %s of replica %s: its controller is not heard of any more", orphan.id, orphan.ref.name)
        end_draft(mover, orphan.id, keep=True)
    for group in (VERIFYING, CONVERTING):
        mover.works.cancel_unheard(group, ORPHANED_S)


def end_draft(mover: Mover, key: str, *, keep: bool) -> None:
    """Stop what writes to a draft, and end it."""
    draft = mover.drafts.get(key)
    draft.leaves.stop()
    for work in list(draft.works):
        mover.works.cancel(work)
    mover.data.withdraw(key)
    mover.drafts.release(key, keep=keep)


def retire_points(mover: Mover, request: api.RetirePoints) -> api.WorkStarted:
    """Retire points, in the background."""

    def retire(_ctx: Context, _meter: Meter) -> None:
        with mover.drafts.owned(request.owner) as store:
            store.retire(request.points)

    return api.WorkStarted(mover.works.start(f"retire {request.owner.ref.name}", retire))


def forget_points(mover: Mover, request: api.ForgetPoints) -> api.Nothing:
    """Take points out of a replica's record whose content the platform does not have."""
    with mover.drafts.owned(request.owner) as store:
        store.forget(request.points)
    return api.Nothing()


def bind_head(mover: Mover, request: api.BindHead) -> api.HeadBound:
    """Make a new head on a point."""
    with mover.drafts.owned(request.owner) as store:
        return api.HeadBound(store.bind_head(request.point), store.definition(request.point))


def set_state(mover: Mover, request: api.SetState) -> api.Nothing:
    """Record the replica's state."""
    with mover.drafts.owned(request.owner) as store:
        store.set_state(request.state)
    return api.Nothing()


def set_identity(mover: Mover, request: api.SetIdentity) -> api.Nothing:
    """Record the replica's identity."""
    with mover.drafts.owned(request.owner) as store:
        store.set_identity(request.identity)
    return api.Nothing()


def remove_replica(mover: Mover, request: api.RemoveReplica) -> api.Nothing:
    """Delete the replica's files."""
    with mover.drafts.owned(request.owner) as store:
        store.remove()
    return api.Nothing()
