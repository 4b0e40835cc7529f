"""What is to be done with one disk, and why: transfer modes and reason codes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from understudy.model.extent import Extent


class TransferMode(enum.StrEnum):
    """How the changes of a disk are found."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIGEST_SCAN = "digest_scan"


class TransportMode(enum.StrEnum):
    """How the source proxy reaches a disk: on the disk's host, by NBD over TLS, or by the vendor's disk library."""

    LOCAL = "local"
    NETWORK = "network"
    LIBRARY = "library"


class Reason(enum.StrEnum):
    """Why a disk was not incremental; an incremental one has ``NONE``."""

    NONE = ""
    FIRST_RUN = "first_run"
    NEW_DISK = "new_disk"
    NO_BASELINE = "no_baseline"
    CHECKPOINT_MISSING = "checkpoint_missing"
    BITMAP_INCONSISTENT = "bitmap_inconsistent"
    TRACKING_UNSUPPORTED = "tracking_unsupported"
    DISK_RESIZED = "disk_resized"
    BLOCK_SIZE_CHANGED = "block_size_changed"
    REPLICA_CHANGED = "replica_changed"
    SOURCE_REPLACED = "source_replaced"
    SOURCE_ROLLED_BACK = "source_rolled_back"
    SNAPSHOT_LEFT = "snapshot_left"
    CBT_DISABLED = "cbt_disabled"
    CBT_RESET = "cbt_reset"
    CBT_REFUSED = "cbt_refused"
    CBT_MISMATCH = "cbt_mismatch"
    EXCLUSIONS_LOST = "exclusions_lost"
    FORCED = "forced"


@dataclass(frozen=True)
class DiskPlan:
    """The decision for one disk.

    :ivar chained: the new layer lies on the newest point's layer; else it stands alone and holds the whole disk.
    :ivar since_point: the point at whose instant tracking began, if the newest point is younger; else empty.
        Blocks in which the two points differ are looked at, whatever tracking says of them.
    :ivar suspect: ranges that the replica does not hold as their digests say: they are looked at, and sent.
    """

    name: str
    size: int
    mode: TransferMode
    reason: Reason
    chained: bool
    since_point: str = ""
    suspect: tuple[Extent, ...] = ()
