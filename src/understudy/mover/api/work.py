"""Long operations: how far they are, and how they ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from understudy.model.estimate import Sums
from understudy.model.exclusion import DiskSurvey
from understudy.model.extent import Extent
from understudy.storage.values import RebuiltReplica


class WorkState(enum.StrEnum):
    """State of a long operation."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class WorkStarted:
    """A long operation was started."""

    work: str


@dataclass(frozen=True)
class WorkQuery:
    """Ask for progress, waiting up to ``wait_s`` seconds for the end."""

    work: str
    wait_s: float = 0.0


@dataclass(frozen=True)
class CancelWork:
    """Stop a long operation and wait for its end; unknown ids are no error."""

    work: str


@dataclass(frozen=True)
class Progress:
    """Completed work in bytes, and the busy seconds of each part so far (``source``, ``source_proxy``, ...).

    :ivar saved: bytes that an earlier attempt had brought already and that did not travel again.
    :ivar reconnects: connections that were lost and made again.
    :ivar waiting: why nothing moves, empty while it does.
    :ivar checked: blocks that tracking calls unchanged and that were compared with their digests all the same.
    :ivar mismatched: those of them that had changed.
    """

    total: int = 0
    processed: int = 0
    read: int = 0
    sent: int = 0
    wire: int = 0
    zero: int = 0
    busy: dict[str, float] | None = None
    saved: int = 0
    reconnects: int = 0
    waiting: str = ""
    checked: int = 0
    mismatched: int = 0


@dataclass(frozen=True)
class ErrorFields:
    """An error on its way between processes."""

    code: str
    what: str
    why: str
    todo: str


@dataclass(frozen=True)
class VerifiedDisk:
    """Outcome for one disk.

    :ivar bad_count: blocks whose content does not match.
    :ivar bad_blocks: the first of their indexes, at most 1000.
    :ivar problem: why it could not be verified, or empty.
    :ivar bad: the blocks as ranges of the disk in bytes, at most 1000.
    :ivar affected: the other points that read the same damaged places.
    :ivar verified_at: end of the pass; if it did not come to its end, of the one before.
    :ivar digests_recomputed_at: not empty if the digests were made from the replica itself, at that time.
    """

    name: str
    blocks: int
    bad_count: int
    bad_blocks: tuple[int, ...]
    problem: str
    bad: tuple[Extent, ...] = ()
    affected: tuple[str, ...] = ()
    verified_at: str = ""
    digests_recomputed_at: str = ""


@dataclass(frozen=True)
class WorkStatus:
    """How far a long operation is.

    :ivar verified: filled by :class:`VerifyPoint` alone; :ivar rebuilt: by :class:`RebuildReplica` alone;
    :ivar surveyed: by :class:`SurveyDisks` alone; :ivar sums: by :class:`EstimateTransfer` alone.
    """

    state: WorkState
    seconds: float
    progress: Progress
    error: ErrorFields | None = None
    verified: tuple[VerifiedDisk, ...] = ()
    rebuilt: RebuiltReplica | None = None
    surveyed: tuple[DiskSurvey, ...] = ()
    sums: Sums | None = None
