"""Invitations: who may become a proxy, once, and until when. The secret itself is never stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, not_, or_, select

from understudy.controller.catalog import check_slots, host_row, refuse_taken
from understudy.controller.clock import now_iso
from understudy.controller.database import Database
from understudy.controller.naming import check_name
from understudy.controller.schema import MAX_WRONG_TRIES, InvitationRow, ProxyRow
from understudy.errors import Refused, UnderstudyError, UsageError
from understudy.model.address import Address

LONGEST_S = 30 * 86400
_TODO = "make a new one with 'understudy proxy invite' on the controller"


@dataclass(frozen=True)
class Invitation:
    """An invitation as it was made; only now is its ``secret`` known."""

    id: str
    secret: str
    expires_at: str


def make_invitation(
    database: Database, name: str, host: str, slots: int, valid_s: int, address: Address
) -> Invitation:
    """Store an invitation for a proxy; an older one for the same name ends.

    :param host: the host whose disks it moves; empty for those of every host.
    :param slots: its task slots; 0 for one for each of its cores.
    :param address: where the enrolment server waits for it.
    :raises UsageError: if a value is not acceptable.
    :raises NotFound: if the host is unknown.
    :raises Refused: if the name is taken.
    """
    what = f"invite proxy {name!r}"
    check_name(what, name)
    check_slots(what, slots)
    if not 1 <= valid_s <= LONGEST_S:
        raise UsageError(what, f"it cannot be valid for {valid_s} s", "choose at most 30d")
    secret = secrets.token_urlsafe(32)
    expires_at = (datetime.now(UTC) + timedelta(seconds=valid_s)).isoformat(timespec="milliseconds")
    row = InvitationRow(id=str(uuid.uuid4()), name=name, host=host or None, slots=slots, secret_digest=_digest(secret),
                        expires_at=expires_at, address=str(address), wrong_tries=0)
    with database.transaction() as session:
        if host:
            host_row(session, host)
        refuse_taken(session, ProxyRow, name, what)
        session.execute(delete(InvitationRow).where(or_(InvitationRow.name == name, InvitationRow.over(now_iso()))))
        session.add(row)
        return Invitation(row.id, secret, expires_at)


def withdraw_invitation(database: Database, invitation: Invitation) -> None:
    """Make an invitation useless; one that is gone is no error."""
    with database.transaction() as session:
        session.execute(delete(InvitationRow).filter_by(id=invitation.id))


def open_addresses(database: Database) -> frozenset[str]:
    """Where invited hosts may come to; empty if no invitation is open."""
    with database.reading() as session:
        found = session.scalars(select(InvitationRow.address).where(not_(InvitationRow.over(now_iso()))))
        return frozenset(found)


def refusal(row: InvitationRow | None, secret: str) -> UnderstudyError | None:
    """Why an invitation cannot be used with ``secret``, or None; counts wrong secrets in the row."""
    what = "enrol a proxy"
    if row is None:
        return Refused(what, "the controller knows no such invitation", _TODO)
    if row.wrong_tries >= MAX_WRONG_TRIES:
        return Refused(what, "the invitation is void: wrong secrets came too often", _TODO)
    if not hmac.compare_digest(row.secret_digest, _digest(secret)):
        row.wrong_tries += 1
        return Refused(what, "the secret is wrong", "copy the whole token")
    if row.used_at is not None:
        return Refused(what, "the invitation was used already", _TODO)
    if row.expires_at <= now_iso():
        return Refused(what, "the invitation has expired", _TODO)
    return None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
