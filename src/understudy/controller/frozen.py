"""Guests that are frozen, or may be: recorded before freezing, so that a crash leaves no guest frozen for good (S9)."""

from __future__ import annotations

from sqlalchemy import select

from understudy.controller.database import Database
from understudy.controller.records import FrozenGuest
from understudy.controller.schema import FrozenGuestRow


def record_frozen(database: Database, guest: FrozenGuest) -> None:
    """Record that a guest is about to be frozen; durable when this returns. A record that it has is replaced."""
    with database.transaction() as session:
        row = session.get(FrozenGuestRow, (guest.host, guest.vm_uuid))
        if row is None:
            row = FrozenGuestRow(host=guest.host, vm_uuid=guest.vm_uuid)
            session.add(row)
        row.session_id, row.frozen_at, row.deadline = guest.session, guest.frozen_at, guest.deadline


def clear_frozen(database: Database, host: str, vm_uuid: str) -> None:
    """Record that a guest is thawed; no error if it was not recorded."""
    with database.transaction() as session:
        row = session.get(FrozenGuestRow, (host, vm_uuid))
        if row is not None:
            session.delete(row)


def list_frozen(database: Database) -> tuple[FrozenGuest, ...]:
    """All guests that are recorded as frozen, the oldest first."""
    with database.reading() as session:
        rows = session.scalars(select(FrozenGuestRow).order_by(FrozenGuestRow.frozen_at))
        return tuple(FrozenGuest(row.host, row.vm_uuid, row.session_id, row.frozen_at, row.deadline) for row in rows)
