"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Make all tables, and the proxy that always exists."""
    _make_configuration()
    _make_sessions()
    _make_replicas()
    # 0 slots: as many as the machine has cores on the day it is asked.
    op.execute("INSERT INTO proxies (name, host, slots) VALUES ('local', NULL, 0)")


def _make_configuration() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("uri", sa.String(length=2000), nullable=False),
        sa.Column("scratch_dir", sa.String(length=2000), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_hosts"),
    )
    op.create_table(
        "datastores",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=2000), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name="fk_datastores_host"),
        sa.PrimaryKeyConstraint("name", name="pk_datastores"),
        sa.UniqueConstraint("host", "path", name="uq_datastores_host"),
    )
    op.create_table(
        "proxies",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name="fk_proxies_host"),
        sa.PrimaryKeyConstraint("name", name="pk_proxies"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("target", sa.String(length=100), nullable=False),
        sa.Column("datastore", sa.String(length=100), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("suffix", sa.String(length=100), nullable=False),
        sa.Column("snapshot_mode", sa.String(length=40), nullable=False),
        sa.Column("guest_policy", sa.String(length=40), nullable=False),
        sa.Column("block_size", sa.Integer(), nullable=False),
        sa.Column("compression", sa.String(length=40), nullable=False),
        sa.Column("source_proxy", sa.String(length=100), nullable=True),
        sa.Column("target_proxy", sa.String(length=100), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["datastore"], ["datastores.name"], name="fk_jobs_datastore"),
        sa.ForeignKeyConstraint(["source"], ["hosts.name"], name="fk_jobs_source"),
        sa.ForeignKeyConstraint(["source_proxy"], ["proxies.name"], name="fk_jobs_source_proxy"),
        sa.ForeignKeyConstraint(["target"], ["hosts.name"], name="fk_jobs_target"),
        sa.ForeignKeyConstraint(["target_proxy"], ["proxies.name"], name="fk_jobs_target_proxy"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("name", name="uq_jobs_name"),
    )
    op.create_table(
        "job_vms",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("vm", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_vms_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "vm", name="pk_job_vms"),
    )
    op.create_table(
        "job_excluded_disks",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("vm", sa.String(length=255), nullable=False),
        sa.Column("disk", sa.String(length=255), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_excluded_disks_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "vm", "disk", name="pk_job_excluded_disks"),
    )


def _make_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("job", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("full_scan", sa.Boolean(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("queued_at", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.String(length=32), nullable=True),
        sa.Column("ended_at", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sessions_job_id", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_sessions_unfinished",
        "sessions",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Integer(), nullable=False),
        sa.Column("vm", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("restore_point", sa.String(length=100), nullable=True),
        sa.Column("consistency", sa.String(length=40), nullable=True),
        sa.Column("frozen_ms", sa.Double(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("waiting", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_tasks_session_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("session_id", "vm", name="uq_tasks_session_id"),
    )
    op.create_table(
        "steps",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.String(length=32), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_steps_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_steps"),
        sa.UniqueConstraint("task_id", "name", name="uq_steps_task_id"),
    )
    op.create_table(
        "disk_transfers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire_bytes", sa.BigInteger(), nullable=False),
        sa.Column("zero_bytes", sa.BigInteger(), nullable=False),
        sa.Column("processed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("bottleneck", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_disk_transfers_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_disk_transfers"),
        sa.UniqueConstraint("task_id", "name", name="uq_disk_transfers_task_id"),
    )


def _make_replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=400), nullable=False),
        sa.Column("datastore", sa.String(length=100), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("owner_name", sa.String(length=100), nullable=False),
        sa.Column("source_vm", sa.String(length=255), nullable=False),
        sa.Column("source_uuid", sa.String(length=36), nullable=False),
        sa.Column("target_host", sa.String(length=100), nullable=False),
        sa.Column("domain_uuid", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("head_point", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["datastore"], ["datastores.name"], name="fk_replicas_datastore"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_replicas_job_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["target_host"], ["hosts.name"], name="fk_replicas_target_host"),
        sa.PrimaryKeyConstraint("id", name="pk_replicas"),
        sa.UniqueConstraint("datastore", "name", name="uq_replicas_datastore"),
    )
    op.create_table(
        "restore_points",
        sa.Column("replica_id", sa.String(length=36), nullable=False),
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("consistency", sa.String(length=40), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("block_size", sa.Integer(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("baseline", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["replica_id"], ["replicas.id"], name="fk_restore_points_replica_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("replica_id", "id", name="pk_restore_points"),
    )
    op.create_table(
        "frozen_guests",
        sa.Column("host", sa.String(length=100), nullable=False),
        sa.Column("vm_uuid", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.Integer(), nullable=False),
        sa.Column("frozen_at", sa.String(length=32), nullable=False),
        sa.Column("deadline", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("host", "vm_uuid", name="pk_frozen_guests"),
    )


def downgrade() -> None:
    """Remove all tables."""
    for table in (
        "steps",
        "disk_transfers",
        "tasks",
        "restore_points",
        "sessions",
        "replicas",
        "job_vms",
        "job_excluded_disks",
        "jobs",
        "proxies",
        "datastores",
        "hosts",
        "frozen_guests",
    ):
        op.drop_table(table)
