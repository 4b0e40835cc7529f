"""How hosts of VMware vSphere are logged in to, and the vendor's disk library on the hosts of proxies."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

_CREDENTIAL = "fk_hosts_credential"
# Older rows get these; new ones always name every value, so the table keeps no defaults.
_ADDED: list[tuple[str, sa.types.TypeEngine[Any], str]] = [
    ("thumbprint", sa.String(length=100), ""),
    ("library_dir", sa.String(length=2000), ""),
    ("library_plugin", sa.String(length=2000), "vddk"),
]


def upgrade() -> None:
    """Add columns."""
    for name, kind, value in _ADDED:
        op.add_column("hosts", sa.Column(name, kind, nullable=False, server_default=value))
    with op.batch_alter_table("hosts") as batch:
        batch.add_column(sa.Column("credential", sa.String(length=100), nullable=True))
        batch.create_foreign_key(_CREDENTIAL, "credentials", ["credential"], ["name"])
        for name, kind, _ in _ADDED:
            batch.alter_column(name, existing_type=kind, server_default=None)


def downgrade() -> None:
    """Remove them again."""
    with op.batch_alter_table("hosts") as batch:
        batch.drop_constraint(_CREDENTIAL, type_="foreignkey")
        batch.drop_column("credential")
        for name, _, _ in _ADDED:
            batch.drop_column(name)
