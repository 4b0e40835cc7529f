"""Sample checks, schedules of verification, hosts that a VM may migrate to, markers of datastores."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

# Older rows get these; new ones always name every value, so the tables keep no defaults.
_ADDED: dict[str, list[tuple[str, sa.types.TypeEngine[Any], str]]] = {
    "datastores": [("marker", sa.String(length=36), "")],
    "jobs": [
        ("other_sources", sa.JSON(), "[]"),
        ("verify_every_s", sa.Integer(), "0"),
        ("verify_rate", sa.BigInteger(), "0"),
    ],
    "disk_transfers": [
        ("checked_blocks", sa.BigInteger(), "0"),
        ("mismatched_blocks", sa.BigInteger(), "0"),
    ],
}


def upgrade() -> None:
    """Add columns."""
    for table, columns in _ADDED.items():
        for name, kind, value in columns:
            op.add_column(table, sa.Column(name, kind, nullable=False, server_default=value))
        with op.batch_alter_table(table) as batch:
            for name, kind, _ in columns:
                batch.alter_column(name, existing_type=kind, server_default=None)


def downgrade() -> None:
    """Remove them again."""
    for table, columns in _ADDED.items():
        with op.batch_alter_table(table) as batch:
            for name, _, _ in columns:
                batch.drop_column(name)
