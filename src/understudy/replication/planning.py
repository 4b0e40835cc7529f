"""Decide for each disk how its changes are found, and why. Pure: facts in, plans out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from understudy.errors import Refused
from understudy.model.extent import Extent, round_out
from understudy.model.inventory import Disk, Vm
from understudy.model.replica import ImageGeneration, PointDisk, RestorePoint
from understudy.model.transfer import DiskPlan, Reason, TransferMode


@dataclass(frozen=True)
class PlanningFacts:
    """What is known before the snapshot.

    :ivar newest: the newest restore point, or None.
    :ivar damaged: disks whose chain of layers at the newest point is damaged.
    :ivar tracking: per disk, ``Reason.NONE`` if changes since the newest point's baseline are known, else why not.
    :ivar block_size: the job's block size in bytes.
    :ivar full_scan: the operator wants every block compared.
    :ivar began: the point at whose instant the newest point's baseline was made, see :func:`began_at`.
    :ivar images: what the images of the disks are now, as far as that is known.
    :ivar in_place: the disks of the replica are written in place, below the snapshots that are its points: they cannot
        grow, so a disk that grew gets a new file.
    """

    newest: RestorePoint | None
    damaged: frozenset[str]
    tracking: Mapping[str, Reason]
    block_size: int
    full_scan: bool
    began: RestorePoint | None = None
    images: Mapping[str, ImageGeneration] = field(default_factory=dict)
    in_place: bool = False


def began_at(points: Sequence[RestorePoint]) -> RestorePoint | None:
    """The point at whose instant the baseline of the newest of ``points`` was made; None if it is unknown or retired.

    Records of older versions do not name it. Then it is the first point in the row of those with this baseline, if the
    point before that row is there to show where the row begins.
    """
    if not points or points[-1].baseline is None:
        return None
    baseline, first = points[-1].baseline, points[-1]
    if baseline.point:
        return next((point for point in points if point.id == baseline.point), None)
    for point in reversed(points):
        if point.baseline is None or point.baseline.checkpoint != baseline.checkpoint:
            return first
        first = point
    return None


def plan_disks(vm: str, disks: Sequence[Disk], facts: PlanningFacts) -> tuple[DiskPlan, ...]:
    """A plan per disk, in the order of ``disks``.

    :raises Refused: if a disk became smaller: its older points could not be told from a mistake.
    """
    return tuple(_plan_disk(vm, disk, facts) for disk in disks)


def _plan_disk(vm: str, disk: Disk, facts: PlanningFacts) -> DiskPlan:
    mode, reason, chained = _decide(vm, disk, facts)
    since = _since(disk, facts) if mode is TransferMode.INCREMENTAL else None
    older = "" if since is None or since == facts.newest else since.id
    return DiskPlan(disk.name, disk.size, mode, reason, chained, older)


def _decide(vm: str, disk: Disk, facts: PlanningFacts) -> tuple[TransferMode, Reason, bool]:
    if facts.newest is None:
        return TransferMode.FULL, Reason.FIRST_RUN, False
    previous = facts.newest.disk(disk.name)
    if previous is None:
        return TransferMode.FULL, Reason.NEW_DISK, False
    if disk.name in facts.damaged:
        return TransferMode.FULL, Reason.REPLICA_CHANGED, False
    if disk.size < previous.size:
        raise Refused(
            f"disk {disk.name} of VM {vm!r}",
            f"it shrank from {previous.size} to {disk.size} bytes",
            f"give it its old size again, or exclude it with --exclude-disk '{vm}:{disk.name}' (older points keep it), "
            "or remove the replica and start again",
        )
    if facts.in_place and disk.size != previous.size:
        return TransferMode.FULL, Reason.DISK_RESIZED, False
    if facts.newest.block_size != facts.block_size:
        return TransferMode.FULL, Reason.BLOCK_SIZE_CHANGED, True
    reason = _why_not_incremental(disk, previous, facts.newest, facts)
    return (TransferMode.DIGEST_SCAN if reason else TransferMode.INCREMENTAL), reason, True


def _why_not_incremental(disk: Disk, previous: PointDisk, newest: RestorePoint, facts: PlanningFacts) -> Reason:
    if facts.full_scan:
        return Reason.FORCED
    if not disk.tracked:
        return Reason.TRACKING_UNSUPPORTED
    if disk.path != previous.source_path:
        return Reason.SOURCE_REPLACED
    before = newest.generation.image(disk.name) if newest.generation else None
    now = facts.images.get(disk.name)
    changed = source_change(newest, before, now)
    if changed:
        return changed
    if disk.size != previous.size:
        return Reason.DISK_RESIZED
    tracking = facts.tracking.get(disk.name, Reason.NO_BASELINE)
    if tracking or _since(disk, facts) or untouched(before, now):
        return tracking
    return Reason.NO_BASELINE


def source_change(newest: RestorePoint, before: ImageGeneration | None, now: ImageGeneration | None) -> Reason:
    """Whether an image is another one than at the newest point, or an older state of it; what is unknown is no change.

    A state between the newest point and now cannot be told from the present, and need not: it holds the bitmap.
    """
    if before is None or now is None:
        return Reason.NONE
    if now.file.inode != before.file.inode:
        return Reason.SOURCE_REPLACED
    if now.file.mtime_ns < before.file.mtime_ns:
        return Reason.SOURCE_ROLLED_BACK
    lost = set(before.bitmaps or ()) - set(now.bitmaps or ()) if now.bitmaps is not None else set()
    gone = newest.baseline is not None and newest.baseline.checkpoint in lost
    return Reason.SOURCE_ROLLED_BACK if gone else Reason.NONE


def untouched(before: ImageGeneration | None, now: ImageGeneration | None) -> bool:
    """Whether an image was off at the newest point and is off now, and was not written to in between."""
    return (
        before is not None and now is not None
        and before.bitmaps is not None and now.bitmaps is not None and before.file == now.file
    )  # fmt: skip


def _since(disk: Disk, facts: PlanningFacts) -> RestorePoint | None:
    """The point from which all that may differ from the newest one can be found, even in an image that was rolled back.

    A VM that was off at the newest point has an older baseline. If its image goes back to a state between the two, the
    bitmap does too, and says nothing of what the newest point has since then; the digests of both points do.
    """
    began, newest = facts.began, facts.newest
    if began is None or newest is None or began.id == newest.id:
        return began
    then = began.disk(disk.name)
    usable = then is not None and then.size == disk.size and began.block_size == newest.block_size
    return began if usable else None


def no_longer_replicated(vm: Vm, disks: Sequence[Disk], newest: RestorePoint | None) -> tuple[str, ...]:
    """What to tell of disks that the newest point has and the new one will not have."""
    gone = {disk.name for disk in newest.disks} - {disk.name for disk in disks} if newest else set()
    there = {disk.name for disk in vm.disks}
    keeps = f"points up to {newest.id if newest else ''} keep it, the replica VM has it no more"
    return tuple(
        f"disk {name} is {'excluded now' if name in there else f'no longer part of VM {vm.name!r}'}: {keeps}"
        for name in sorted(gone)
    )


def without_tracking(plans: Sequence[DiskPlan], reason: Reason, only: str = "") -> tuple[DiskPlan, ...]:
    """The plans after the platform refused the incremental part: incremental disks are scanned for ``reason``.

    :param only: of this disk alone.
    """
    return tuple(
        replace(plan, mode=TransferMode.DIGEST_SCAN, reason=reason, since_point="")
        if plan.mode is TransferMode.INCREMENTAL and plan.name == (only or plan.name)
        else plan
        for plan in plans
    )


def without_exclusions(plans: Sequence[DiskPlan], lost: frozenset[str]) -> tuple[DiskPlan, ...]:
    """The plans; disks of which it is lost what the points left out that they are compared with are scanned."""
    return tuple(
        replace(plan, mode=TransferMode.DIGEST_SCAN, reason=Reason.EXCLUSIONS_LOST, since_point="")
        if plan.name in lost
        else plan
        for plan in plans
    )


def with_suspects(
    plans: Sequence[DiskPlan], suspect: Mapping[str, Sequence[Extent]], block_size: int
) -> tuple[DiskPlan, ...]:
    """The plans with ranges that the newest point does not hold as its digests say, grown to whole blocks.

    A full copy writes the whole disk anyway.
    """
    return tuple(
        plan if plan.mode is TransferMode.FULL
        else replace(plan, suspect=tuple(round_out(suspect.get(plan.name, ()), block_size, plan.size)))
        for plan in plans
    )  # fmt: skip


def required_bytes(disks: Sequence[Disk], plans: Sequence[DiskPlan]) -> int:
    """Free space that the target must have before a start, in bytes.

    A stand-alone layer takes what the source image takes now; what a chained one will take is unknown before it is
    read, so only its metadata is asked for. Running out while writing is safe: the draft is abandoned.
    """
    alone = {plan.name for plan in plans if not plan.chained}
    metadata = 1 << 20
    return sum((disk.allocated or disk.size) if disk.name in alone else metadata for disk in disks)
