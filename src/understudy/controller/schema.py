"""How the configuration database is laid out: one class per table.

These objects never leave the controller package; functions of the sibling modules turn them into values of the model.
Times are text, ISO 8601 in UTC, so that both databases return exactly what was stored.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    or_,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from understudy.model.session import SessionKind

NAME_LENGTH = 100
#: An invitation is void after so many wrong secrets.
MAX_WRONG_TRIES = 10

Name = String(NAME_LENGTH)
VmName = String(255)
Word = String(40)
Uuid = String(36)
Time = String(32)

CHILDREN = "all, delete-orphan"


class Base(DeclarativeBase):
    """All tables; every constraint has a predictable name, because migrations must name what they change."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class HostRow(Base):
    """A hypervisor host; ``credential`` is None where the URI alone is enough."""

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    uri: Mapped[str] = mapped_column(String(2000))
    scratch_dir: Mapped[str] = mapped_column(String(2000))
    max_snapshots: Mapped[int]
    nbd_address: Mapped[str] = mapped_column(String(300))
    credential: Mapped[str | None] = mapped_column(ForeignKey("credentials.name"))
    thumbprint: Mapped[str] = mapped_column(String(100))
    library_dir: Mapped[str] = mapped_column(String(2000))
    library_plugin: Mapped[str] = mapped_column(String(2000))


class DatastoreRow(Base):
    """A directory for replicas on a host."""

    __tablename__ = "datastores"
    __table_args__ = (UniqueConstraint("host", "path"),)

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    kind: Mapped[str] = mapped_column(Word)
    path: Mapped[str] = mapped_column(String(2000))
    max_transfers: Mapped[int]
    marker: Mapped[str] = mapped_column(Uuid)
    place: Mapped[str] = mapped_column(String(300))


class ProxyRow(Base):
    """A data mover; 0 slots means as many as its machine has cores."""

    __tablename__ = "proxies"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    slots: Mapped[int]
    kind: Mapped[str] = mapped_column(Word)
    identity: Mapped[str] = mapped_column(Name)
    control_address: Mapped[str] = mapped_column(String(300))
    data_address: Mapped[str] = mapped_column(String(300))
    certificate_expires: Mapped[str] = mapped_column(Time)


class InvitationRow(Base):
    """An invitation for a proxy: who knows the secret may enrol once, until ``expires_at``, at ``address``."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    slots: Mapped[int]
    secret_digest: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[str] = mapped_column(Time)
    used_at: Mapped[str | None] = mapped_column(Time)
    address: Mapped[str] = mapped_column(String(300))
    wrong_tries: Mapped[int]

    @classmethod
    def over(cls, now: str) -> ColumnElement[bool]:
        """Rows of invitations that nobody can use any more at the time ``now``."""
        return or_(cls.used_at.is_not(None), cls.expires_at <= now, cls.wrong_tries >= MAX_WRONG_TRIES)


class ThrottleRow(Base):
    """A limit for what proxies send; without source and target it holds for all together. ``windows``: weekly grid."""

    __tablename__ = "throttles"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    source_proxy: Mapped[str | None] = mapped_column(ForeignKey("proxies.name"))
    target_proxy: Mapped[str | None] = mapped_column(ForeignKey("proxies.name"))
    rate: Mapped[int | None] = mapped_column(BigInteger)
    windows: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class JobRow(Base):
    """Saved settings of a job."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(Name, unique=True)
    source: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    target: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    datastore: Mapped[str] = mapped_column(ForeignKey("datastores.name"))
    points: Mapped[int]
    suffix: Mapped[str] = mapped_column(Name)
    snapshot_mode: Mapped[str] = mapped_column(Word)
    guest_policy: Mapped[str] = mapped_column(Word)
    block_size: Mapped[int]
    compression: Mapped[str] = mapped_column(Word)
    source_proxy: Mapped[str | None] = mapped_column(ForeignKey("proxies.name"))
    target_proxy: Mapped[str | None] = mapped_column(ForeignKey("proxies.name"))
    enabled: Mapped[bool]
    connections: Mapped[int]
    patience_s: Mapped[int]
    other_sources: Mapped[list[str]] = mapped_column(JSON)
    verify_every_s: Mapped[int]
    verify_rate: Mapped[int] = mapped_column(BigInteger)
    masks: Mapped[list[list[str]]] = mapped_column(JSON)
    exclude_swap: Mapped[bool]
    exclude_free: Mapped[bool]
    guests: Mapped[list[dict[str, Any]]] = mapped_column(JSON)

    vms: Mapped[list[JobVmRow]] = relationship(cascade=CHILDREN, order_by="JobVmRow.position", lazy="selectin")
    excluded_disks: Mapped[list[ExcludedDiskRow]] = relationship(
        cascade=CHILDREN, order_by="ExcludedDiskRow.position", lazy="selectin"
    )


class JobVmRow(Base):
    """A VM of a job."""

    __tablename__ = "job_vms"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    vm: Mapped[str] = mapped_column(VmName, primary_key=True)
    position: Mapped[int]


class ExcludedDiskRow(Base):
    """A disk that a job does not replicate."""

    __tablename__ = "job_excluded_disks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    vm: Mapped[str] = mapped_column(VmName, primary_key=True)
    disk: Mapped[str] = mapped_column(VmName, primary_key=True)
    position: Mapped[int]


class SessionRow(Base):
    """One run of a job. It outlives the job: history must tell what happened."""

    __tablename__ = "sessions"
    # Ids are never used twice (AUTOINCREMENT): they are in the tags that sessions leave on hosts, and fence attempts.
    # At most one session of a job is unfinished; the index holds even where two processes insert at the same moment.
    __table_args__ = (
        Index(
            "ix_sessions_unfinished",
            "job_id",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    job: Mapped[str] = mapped_column(Name)
    state: Mapped[str] = mapped_column(Word)
    full_scan: Mapped[bool]
    kind: Mapped[str] = mapped_column(Word, server_default=SessionKind.REPLICATE.value)
    cancel_requested: Mapped[bool]
    queued_at: Mapped[str] = mapped_column(Time)
    started_at: Mapped[str | None] = mapped_column(Time)
    ended_at: Mapped[str | None] = mapped_column(Time)

    tasks: Mapped[list[TaskRow]] = relationship(cascade=CHILDREN, order_by="TaskRow.id", back_populates="session")


class TaskRow(Base):
    """One VM in a session; ``waiting`` says why it does not go on, empty while it does.

    ``held`` is what another controller needs to go on with the task while its snapshot is held (a JSON document);
    ``guest`` is what guest processing did, ``estimate`` what an estimate found (JSON documents).
    """

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("session_id", "vm"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    vm: Mapped[str] = mapped_column(VmName)
    state: Mapped[str] = mapped_column(Word)
    restore_point: Mapped[str | None] = mapped_column(Name)
    consistency: Mapped[str | None] = mapped_column(Word)
    frozen_ms: Mapped[float | None] = mapped_column(Double)
    error: Mapped[str | None] = mapped_column(String)
    warnings: Mapped[list[str]] = mapped_column(JSON)
    waiting: Mapped[str] = mapped_column(String, default="")
    held: Mapped[str | None] = mapped_column(String)
    guest: Mapped[str | None] = mapped_column(String)
    estimate: Mapped[str | None] = mapped_column(String)

    session: Mapped[SessionRow] = relationship(back_populates="tasks")
    steps: Mapped[list[StepRow]] = relationship(cascade=CHILDREN, order_by="StepRow.id", lazy="selectin")
    disks: Mapped[list[DiskTransferRow]] = relationship(
        cascade=CHILDREN, order_by="DiskTransferRow.id", lazy="selectin"
    )


class StepRow(Base):
    """One named part of a task; ``seconds`` is filled at its end."""

    __tablename__ = "steps"
    __table_args__ = (UniqueConstraint("task_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Word)
    state: Mapped[str] = mapped_column(Word)
    started_at: Mapped[str] = mapped_column(Time)
    seconds: Mapped[float | None] = mapped_column(Double)


class DiskTransferRow(Base):
    """One disk in a task; byte counts are of completed work."""

    __tablename__ = "disk_transfers"
    __table_args__ = (UniqueConstraint("task_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(VmName)
    mode: Mapped[str] = mapped_column(Word)
    reason: Mapped[str] = mapped_column(Word)
    size: Mapped[int] = mapped_column(BigInteger)
    read_bytes: Mapped[int] = mapped_column(BigInteger)
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    wire_bytes: Mapped[int] = mapped_column(BigInteger)
    zero_bytes: Mapped[int] = mapped_column(BigInteger)
    processed_bytes: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    bottleneck: Mapped[str] = mapped_column(Word)
    transport: Mapped[str] = mapped_column(Word)
    busy: Mapped[dict[str, float]] = mapped_column(JSON)
    rate: Mapped[float] = mapped_column(Double)
    resumed_bytes: Mapped[int] = mapped_column(BigInteger)
    reconnects: Mapped[int]
    waiting: Mapped[str] = mapped_column(String)
    checked_blocks: Mapped[int] = mapped_column(BigInteger)
    mismatched_blocks: Mapped[int] = mapped_column(BigInteger)
    excluded: Mapped[dict[str, int]] = mapped_column(JSON)
    notes: Mapped[list[str]] = mapped_column(JSON)


class ReplicaRow(Base):
    """What ``replica.json`` said when it was last read: a cache, the file is the truth.

    ``owner_id`` and ``owner_name`` are the job as the file tells it, maybe of another controller; ``job_id`` is filled
    when this database knows that job.
    """

    __tablename__ = "replicas"
    __table_args__ = (UniqueConstraint("datastore", "name"),)

    id: Mapped[str] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(String(400))
    datastore: Mapped[str] = mapped_column(ForeignKey("datastores.name"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    owner_id: Mapped[str] = mapped_column(Uuid)
    owner_name: Mapped[str] = mapped_column(Name)
    source_vm: Mapped[str] = mapped_column(VmName)
    source_uuid: Mapped[str] = mapped_column(Uuid)
    target_host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    domain_uuid: Mapped[str] = mapped_column(Uuid)
    state: Mapped[str] = mapped_column(Word)
    head_point: Mapped[str] = mapped_column(Name)

    points: Mapped[list[RestorePointRow]] = relationship(
        cascade=CHILDREN, order_by="RestorePointRow.position", lazy="selectin"
    )


class RestorePointRow(Base):
    """A restore point of a replica, oldest first by ``position``."""

    __tablename__ = "restore_points"

    replica_id: Mapped[str] = mapped_column(ForeignKey("replicas.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(Name, primary_key=True)
    position: Mapped[int]
    created_at: Mapped[str] = mapped_column(Time)
    consistency: Mapped[str] = mapped_column(Word)
    session: Mapped[int]
    block_size: Mapped[int]
    disks: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    baseline: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    applications: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class CredentialRow(Base):
    """A user and its secret, encrypted with the key of the home; ``kind`` is ``password`` or ``key``."""

    __tablename__ = "credentials"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    user: Mapped[str] = mapped_column(VmName)
    kind: Mapped[str] = mapped_column(Word)
    secret: Mapped[str] = mapped_column(String)


class GuestHostKeyRow(Base):
    """The SSH host key that a guest must have: ``key`` is its type and base64, as in ``known_hosts``."""

    __tablename__ = "guest_host_keys"

    address: Mapped[str] = mapped_column(String(300), primary_key=True)
    key: Mapped[str] = mapped_column(String)


class FrozenGuestRow(Base):
    """A guest that was, or may be, frozen: written before freezing, removed after thawing (S9)."""

    __tablename__ = "frozen_guests"

    host: Mapped[str] = mapped_column(Name, primary_key=True)
    vm_uuid: Mapped[str] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[int]
    frozen_at: Mapped[str] = mapped_column(Time)
    deadline: Mapped[str] = mapped_column(Time)
