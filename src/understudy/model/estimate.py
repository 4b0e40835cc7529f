"""Estimate: what a session would do with a disk, in bytes, found without copying it.

Every byte of a disk is in exactly one category, so that these add up to its size:

- ``swap``, ``mask``, ``free``: left out of the restore point for that reason (S10), whatever the image has there
- ``zero``: not left out, and known to be zero without being read: the image has nothing there
- ``used``: all the rest, which is what the image has allocated

``changed``, ``read`` and ``send`` are no categories; they tell what a session does with the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from understudy.model.exclusion import Kind
from understudy.model.transfer import Reason, TransferMode


@dataclass(frozen=True)
class Sums:
    """What the source proxy finds of one disk.

    :ivar used, zero: as above.
    :ivar changed: in 64 KiB parts, what differs from the point before as far as it is tracked: written to since, or
        left out of one of the two only. None where changes are not tracked, or that is not trusted.
    :ivar read: whole blocks that a session reads.
    :ivar send: at most so much data is handed to the target, before compression. Less is if parts turn out to be
        zero, or blocks to be what the replica has; what was found to be zero without reading is not counted.
    """

    used: int
    zero: int
    changed: int | None
    read: int
    send: int


@dataclass(frozen=True)
class DiskEstimate:
    """One disk.

    :ivar excluded: bytes left out by reason; reasons that do not occur may be missing.
    :ivar notes: what would not be left out although it is wished for, and why.
    """

    name: str
    mode: TransferMode
    reason: Reason
    size: int
    sums: Sums
    excluded: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Totals:
    """Some disks together; ``changed`` is None if it is of any of them."""

    size: int
    used: int
    swap: int
    mask: int
    free: int
    zero: int
    changed: int | None
    read: int
    send: int


def totals_of(disks: Iterable[DiskEstimate]) -> Totals:
    """The sums of some disks, or of one."""
    items = tuple(disks)
    changed = [item.sums.changed for item in items]
    known = [count for count in changed if count is not None]
    left_out = {kind: sum(item.excluded.get(kind, 0) for item in items) for kind in Kind}
    return Totals(
        size=sum(item.size for item in items),
        used=sum(item.sums.used for item in items),
        swap=left_out[Kind.SWAP], mask=left_out[Kind.MASK], free=left_out[Kind.FREE],
        zero=sum(item.sums.zero for item in items),
        changed=sum(known) if len(known) == len(changed) else None,
        read=sum(item.sums.read for item in items),
        send=sum(item.sums.send for item in items),
    )  # fmt: skip
