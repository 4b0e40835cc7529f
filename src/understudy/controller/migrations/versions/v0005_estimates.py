"""Sessions that estimate, and what they find."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add columns."""
    # The default stays: to remove it, SQLite would have to copy the table, whose ids must never be used twice.
    op.add_column("sessions", sa.Column("kind", sa.String(length=40), nullable=False, server_default="replicate"))
    op.add_column("tasks", sa.Column("estimate", sa.String(), nullable=True))


def downgrade() -> None:
    """Remove them again."""
    op.drop_column("tasks", "estimate")
    op.drop_column("sessions", "kind")
