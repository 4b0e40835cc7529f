"""Values of the controller that the model does not have: what the configuration database adds to it."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.guests.checking import GuestCheck
from understudy.model.estimate import DiskEstimate
from understudy.model.inventory import HostFacts
from understudy.model.job import Job, Proxy
from understudy.model.preflight import Finding, Preflight
from understudy.model.replica import Replica
from understudy.model.session import SessionKind, SessionState
from understudy.mover.api import LibraryFacts, MoverInfo, VerifiedDisk
from understudy.replication.held import HeldTask


@dataclass(frozen=True)
class SessionSummary:
    """One run of a job, in a list; ``started_at`` is when it was queued if it has not started."""

    id: int
    job: str
    state: SessionState
    started_at: str
    ended_at: str | None
    kind: SessionKind = SessionKind.REPLICATE


@dataclass(frozen=True)
class ResumedTask:
    """A task that a dead controller left, and what it holds."""

    id: int
    vm: str
    held: HeldTask


@dataclass(frozen=True)
class ClaimedSession:
    """A session that this controller has taken from the queue and must end.

    :ivar job: with the VMs that the session has tasks for.
    :ivar full_scan: the operator wants every disk read whole.
    :ivar resumed: tasks that another controller left while their disks were under way.
    """

    id: int
    job: Job
    full_scan: bool
    resumed: tuple[ResumedTask, ...] = ()
    kind: SessionKind = SessionKind.REPLICATE


@dataclass(frozen=True)
class Estimates:
    """What a task found that estimated, as it is stored."""

    disks: tuple[DiskEstimate, ...]


@dataclass(frozen=True)
class RunningSession:
    """A session that was claimed and has not ended, with its VMs."""

    id: int
    job_id: str
    vms: tuple[str, ...]


@dataclass(frozen=True)
class ReplicaRecord:
    """A replica that the configuration database knows.

    :ivar replica: ``replica.json`` as it was last read; the file is the truth.
    :ivar datastore: name of the datastore where it lies.
    :ivar host: name of the host on which the replica VM is defined.
    :ivar job: name of the job that keeps it up to date, None when this database has no such job.
    """

    replica: Replica
    datastore: str
    host: str
    job: str | None = None

    @property
    def name(self) -> str:
        """The replica's name; unique in its datastore only."""
        return self.replica.identity.name

    @property
    def full_name(self) -> str:
        """``DATASTORE/NAME``, never ambiguous."""
        return f"{self.datastore}/{self.name}"


@dataclass(frozen=True)
class FailoverAnswer:
    """A replica after a failover or its undo, and what the operator should know of the replica VM.

    :ivar note: whether a guest from another platform was converted; empty for others.
    """

    record: ReplicaRecord
    warnings: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class FrozenGuest:
    """A guest that was frozen and not yet recorded as thawed; times are ISO 8601 in UTC."""

    host: str
    vm_uuid: str
    session: int
    frozen_at: str
    deadline: str


@dataclass(frozen=True)
class InvitedProxy:
    """An invitation for a proxy; the token is shown once and stored nowhere.

    :ivar controller: ``HOST:PORT`` where the invited host must come to.
    """

    name: str
    token: str
    expires_at: str
    controller: str


@dataclass(frozen=True)
class ProxyLibrary:
    """What a proxy has of the vendor's disk library; None if it does not answer.

    :ivar problem: why it cannot read disks, or empty.
    """

    proxy: str
    library: LibraryFacts | None
    problem: str

    @property
    def usable(self) -> bool:
        """Whether it can read disks."""
        return self.library is not None and not self.problem


@dataclass(frozen=True)
class CheckedHost:
    """A host that answered: its facts, or, of VMware vSphere, everything that matters for replicating from it.

    :ivar findings: about the host itself and its proxies, the gravest first.
    """

    facts: HostFacts | None = None
    preflight: Preflight | None = None
    proxies: tuple[ProxyLibrary, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class CheckedProxy:
    """A proxy that answered.

    :ivar proxy: as the configuration database has it, after a renewal if one was due.
    :ivar clock_skew_s: seconds that its clock is ahead of the controller's.
    :ivar warnings: what an operator should look at.
    """

    proxy: Proxy
    info: MoverInfo
    clock_skew_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RemovedProxy:
    """A proxy that is no more.

    :ivar told: whether the service destroyed its credentials; None for a child process, which has no service.
    """

    name: str
    told: bool | None


@dataclass(frozen=True)
class ProxyWish:
    """Whom to invite.

    :ivar host: the host whose disks it will move; empty for those of every host.
    :ivar slots: its task slots; 0 for one for each of its cores.
    :ivar controller: ``HOST[:PORT]`` where the invited host reaches this controller; empty for the primary address.
    """

    name: str
    host: str
    slots: int
    valid_s: int
    controller: str


@dataclass(frozen=True)
class VerifyWish:
    """How to verify a restore point.

    :ivar rate: bytes a second to read at most; 0 for no limit.
    :ivar restart: begin a new pass, whatever was done of one.
    :ivar until: when to stop, in seconds of ``time.monotonic()``; None to go on to the end.
    """

    point: str
    rate: int = 0
    restart: bool = False
    until: float | None = None


@dataclass(frozen=True)
class VerifyAnswer:
    """What a verification came to.

    :ivar complete: it came to its end; else the time was over, and the next one goes on there.
    """

    disks: tuple[VerifiedDisk, ...]
    complete: bool = True


@dataclass(frozen=True)
class DueVerification:
    """A restore point that is to be verified by its job's schedule.

    :ivar newest: it is the newest one of its replica.
    :ivar rate: bytes a second, by the job; 0 for no limit.
    """

    record: ReplicaRecord
    point: str
    newest: bool
    rate: int


@dataclass(frozen=True)
class DueAnswer:
    """What is due, whose turn is first first, and why a replica could not be asked."""

    due: tuple[DueVerification, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedGuest:
    """What a session would find in the guest of one VM.

    :ivar accepted: fingerprint of the SSH host key that was accepted just now; empty if none was.
    """

    vm: str
    check: GuestCheck
    accepted: str = ""
