"""Sessions, tasks, steps and disk transfers: their states and what is reported of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from understudy.model.transfer import Reason, TransferMode


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


class Step(enum.StrEnum):
    """The eight steps of one task, in order."""

    SETTINGS = "settings"
    INVENTORY = "inventory"
    GUEST_PROCESSING = "guest_processing"
    SNAPSHOT = "snapshot"
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


@dataclass(frozen=True)
class TaskReport:
    """One VM in a session; ``waiting`` says why it does not go on, empty while it does."""

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


@dataclass(frozen=True)
class SessionReport:
    """One run of a job; times are ISO 8601 in UTC."""

    id: int
    job: str
    state: SessionState
    started_at: str
    ended_at: str | None
    tasks: tuple[TaskReport, ...]


def session_state(tasks: tuple[SessionState, ...]) -> SessionState:
    """The state of a session from the final states of its tasks: the worst wins, a cancelled one before all."""
    for worst in (SessionState.CANCELLED, SessionState.FAILED, SessionState.WARNING):
        if worst in tasks:
            return worst
    return SessionState.SUCCESS
