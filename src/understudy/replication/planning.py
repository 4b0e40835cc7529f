"""Decide for each disk how its changes are found, and why. Pure: facts in, plans out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from understudy.errors import Refused
from understudy.model.extent import Extent, round_out
from understudy.model.inventory import Disk
from understudy.model.replica import RestorePoint
from understudy.model.transfer import DiskPlan, Reason, TransferMode


@dataclass(frozen=True)
class PlanningFacts:
    """What is known before the snapshot.

    :ivar newest: the newest restore point, or None.
    :ivar damaged: disks whose chain of layers at the newest point is damaged.
    :ivar tracking: per disk, ``Reason.NONE`` if changes since the newest point's baseline are known, else why not.
    :ivar block_size: the job's block size in bytes.
    :ivar full_scan: the operator wants every block compared.
    """

    newest: RestorePoint | None
    damaged: frozenset[str]
    tracking: Mapping[str, Reason]
    block_size: int
    full_scan: bool


def plan_disks(vm: str, disks: Sequence[Disk], facts: PlanningFacts) -> tuple[DiskPlan, ...]:
    """A plan per disk, in the order of ``disks``.

    :raises Refused: if a disk became smaller: its older points could not be told from a mistake.
    """
    return tuple(_plan_disk(vm, disk, facts) for disk in disks)


def _plan_disk(vm: str, disk: Disk, facts: PlanningFacts) -> DiskPlan:
    mode, reason, chained = _decide(vm, disk, facts)
    return DiskPlan(name=disk.name, size=disk.size, mode=mode, reason=reason, chained=chained)


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
            "exclude the disk, or remove the replica and start again",
        )
    if facts.newest.block_size != facts.block_size:
        return TransferMode.FULL, Reason.BLOCK_SIZE_CHANGED, True
    reason = _why_not_incremental(disk, previous.size, previous.source_path, facts)
    return (TransferMode.DIGEST_SCAN if reason else TransferMode.INCREMENTAL), reason, True


def _why_not_incremental(disk: Disk, previous_size: int, previous_path: str, facts: PlanningFacts) -> Reason:
    if facts.full_scan:
        return Reason.FORCED
    if not disk.tracked:
        return Reason.TRACKING_UNSUPPORTED
    if disk.path != previous_path:
        return Reason.SOURCE_REPLACED
    if disk.size != previous_size:
        return Reason.DISK_RESIZED
    return facts.tracking.get(disk.name, Reason.NO_BASELINE)


def without_tracking(plans: Sequence[DiskPlan], reason: Reason) -> tuple[DiskPlan, ...]:
    """The plans after the platform refused the incremental part: incremental disks are scanned for ``reason``."""
    return tuple(
        replace(plan, mode=TransferMode.DIGEST_SCAN, reason=reason)
        if plan.mode is TransferMode.INCREMENTAL
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
