"""What is left out of disks, guest processing, credentials for guests."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

# Older rows get these; new ones always name every value, so the tables keep no defaults.
_ADDED: dict[str, list[tuple[str, sa.types.TypeEngine[Any], Any]]] = {
    "jobs": [
        ("masks", sa.JSON(), "[]"),
        ("exclude_swap", sa.Boolean(), sa.true()),
        ("exclude_free", sa.Boolean(), sa.false()),
        ("guests", sa.JSON(), "[]"),
    ],
    "disk_transfers": [
        ("excluded", sa.JSON(), "{}"),
        ("notes", sa.JSON(), "[]"),
    ],
    "restore_points": [("applications", sa.JSON(), "[]")],
}


def upgrade() -> None:
    """Add columns and tables."""
    for table, columns in _ADDED.items():
        for name, kind, value in columns:
            op.add_column(table, sa.Column(name, kind, nullable=False, server_default=value))
        with op.batch_alter_table(table) as batch:
            for name, kind, _ in columns:
                batch.alter_column(name, existing_type=kind, server_default=None)
    op.add_column("tasks", sa.Column("guest", sa.String(), nullable=True))
    op.create_table(
        "credentials",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("user", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_credentials")),
    )
    op.create_table(
        "guest_host_keys",
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_guest_host_keys")),
    )


def downgrade() -> None:
    """Remove them again."""
    op.drop_table("guest_host_keys")
    op.drop_table("credentials")
    with op.batch_alter_table("tasks") as batch:
        batch.drop_column("guest")
    for table, columns in _ADDED.items():
        with op.batch_alter_table(table) as batch:
            for name, _, _ in columns:
                batch.drop_column(name)
