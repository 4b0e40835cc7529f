"""Proxies on other hosts, throttles, limits, and transfers that another controller can go on with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

# Older rows get these; new ones always name every value, so the tables keep no defaults.
_ADDED: dict[str, list[tuple[str, sa.types.TypeEngine[object], object]]] = {
    "hosts": [("max_snapshots", sa.Integer(), "4"), ("nbd_address", sa.String(length=300), "")],
    "datastores": [("max_transfers", sa.Integer(), "0")],
    "proxies": [
        ("kind", sa.String(length=40), "child"),
        ("identity", sa.String(length=100), ""),
        ("control_address", sa.String(length=300), ""),
        ("data_address", sa.String(length=300), ""),
    ],
    "jobs": [("connections", sa.Integer(), "4"), ("patience_s", sa.Integer(), "1800")],
    "disk_transfers": [
        ("transport", sa.String(length=40), "local"),
        ("busy", sa.JSON(), "{}"),
        ("rate", sa.Double(), "0"),
        ("resumed_bytes", sa.BigInteger(), "0"),
        ("reconnects", sa.Integer(), "0"),
        ("waiting", sa.String(), ""),
    ],
}


def upgrade() -> None:
    """Add columns and tables."""
    for table, columns in _ADDED.items():
        for name, kind, value in columns:
            op.add_column(table, sa.Column(name, kind, nullable=False, server_default=str(value)))
        with op.batch_alter_table(table) as batch:
            for name, kind, _ in columns:
                batch.alter_column(name, existing_type=kind, server_default=None)
    op.add_column("tasks", sa.Column("held", sa.String(), nullable=True))
    _make_invitations()
    _make_throttles()


def _make_invitations() -> None:
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("secret_digest", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.String(length=32), nullable=False),
        sa.Column("used_at", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name="fk_invitations_host"),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
    )


def _make_throttles() -> None:
    op.create_table(
        "throttles",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("source_proxy", sa.String(length=100), nullable=True),
        sa.Column("target_proxy", sa.String(length=100), nullable=True),
        sa.Column("rate", sa.BigInteger(), nullable=True),
        sa.Column("windows", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["source_proxy"], ["proxies.name"], name="fk_throttles_source_proxy"),
        sa.ForeignKeyConstraint(["target_proxy"], ["proxies.name"], name="fk_throttles_target_proxy"),
        sa.PrimaryKeyConstraint("name", name="pk_throttles"),
    )


def downgrade() -> None:
    """Remove them again."""
    op.drop_table("throttles")
    op.drop_table("invitations")
    for table, columns in {**_ADDED, "tasks": [("held", sa.String(), "")]}.items():
        with op.batch_alter_table(table) as batch:
            for name, _, _ in columns:
                batch.drop_column(name)
