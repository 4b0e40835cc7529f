"""Datastores whose disks are kept by the platform itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the platform's name of the datastore."""
    op.add_column("datastores", sa.Column("place", sa.String(length=300), nullable=False, server_default=""))


def downgrade() -> None:
    """Remove it again."""
    op.drop_column("datastores", "place")
