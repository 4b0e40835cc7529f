"""Sessions, tasks, steps and disk transfers: their states and what is reported of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from understudy.model.estimate import DiskEstimate
from understudy.model.guest import GuestReport
from understudy.model.transfer import Reason, TransferMode, TransportMode


class SessionState(enum.StrEnum):
    """State of a session or a task."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    WARNING = "warning"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (SessionState.QUEUED, SessionState.RUNNING)


class SessionKind(enum.StrEnum):
    """What the tasks of a session do."""

    REPLICATE = "replicate"
    ESTIMATE = "estimate"


class Step(enum.StrEnum):
    """The eight steps of one task, in order; and the survey, which is there if anything is to be left out."""

    SETTINGS = "settings"
    INVENTORY = "inventory"
    GUEST_PROCESSING = "guest_processing"
    SNAPSHOT = "snapshot"
    SURVEY = "survey"
    READ = "read"
    SEND = "send"
    WRITE = "write"
    COMMIT = "commit"


class StepState(enum.StrEnum):
    """State of a step."""

    RUNNING = "running"
    SUCCESS = "success"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class StepReport:
    """One named part of a task."""

    name: Step
    state: StepState
    seconds: float


@dataclass(frozen=True)
class DiskReport:
    """One disk transfer; byte counts are of completed work.

    :ivar read_bytes: bytes read from the source snapshot.
    :ivar sent_bytes: bytes of data handed to the target before compression.
    :ivar wire_bytes: bytes on the connection between the proxies, 0 when there is none.
    :ivar zero_bytes: bytes known or found to be zero.
    :ivar processed_bytes: position in the disk, for progress.
    :ivar bottleneck: the slowest part: ``source``, ``source_proxy``, ``network``, ``target_proxy``, ``target``.
    :ivar busy: share of each part in the time that the transfer took, from measured waiting times; they add up to 1.
    :ivar rate: bytes of the disk processed in a second, of late; 0 when it does not run.
    :ivar resumed_bytes: bytes that did not travel because an earlier, failed session had brought them already.
    :ivar reconnects: how often a connection was lost and made again.
    :ivar waiting: why the disk does not go on, empty while it does.
    :ivar checked_blocks: blocks that tracking calls unchanged and that were compared with their digests all the same.
    :ivar mismatched_blocks: those of them that had changed.
    :ivar excluded: bytes of the disk that are left out, by reason: ``swap``, ``mask``, ``free``.
    :ivar notes: what was not left out although it was wished for, and why.
    """

    name: str
    mode: TransferMode
    reason: Reason
    size: int
    read_bytes: int = 0
    sent_bytes: int = 0
    wire_bytes: int = 0
    zero_bytes: int = 0
    processed_bytes: int = 0
    seconds: float = 0.0
    bottleneck: str = ""
    transport: TransportMode = TransportMode.LOCAL
    busy: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    resumed_bytes: int = 0
    reconnects: int = 0
    waiting: str = ""
    checked_blocks: int = 0
    mismatched_blocks: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def eta_s(self) -> float | None:
        """Seconds until the disk is done if the rate stays; None if that cannot be said."""
        left = self.size - self.processed_bytes
        return left / self.rate if left > 0 and self.rate > 0 else None


@dataclass(frozen=True)
class TaskReport:
    """One VM in a session.

    :ivar waiting: why it does not go on, empty while it does.
    :ivar guest: what guest processing did; None if it was off.
    :ivar estimate: what a session would do with the disks; of sessions of that kind only.
    """

    vm: str
    state: SessionState
    restore_point: str | None = None
    consistency: str | None = None
    frozen_ms: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    waiting: str = ""
    steps: tuple[StepReport, ...] = ()
    disks: tuple[DiskReport, ...] = ()
    guest: GuestReport | None = None
    estimate: tuple[DiskEstimate, ...] = ()


@dataclass(frozen=True)
class SessionReport:
    """One run of a job; times are ISO 8601 in UTC."""

    id: int
    job: str
    state: SessionState
    started_at: str
    ended_at: str | None
    tasks: tuple[TaskReport, ...]
    kind: SessionKind = SessionKind.REPLICATE


def session_state(tasks: tuple[SessionState, ...]) -> SessionState:
    """The state of a session from the final states of its tasks: the worst wins, a cancelled one before all."""
    for worst in (SessionState.CANCELLED, SessionState.FAILED, SessionState.WARNING):
        if worst in tasks:
            return worst
    return SessionState.SUCCESS
