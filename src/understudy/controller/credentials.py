"""Credentials for guests and hosts, and the host keys that guests must have, in the configuration database."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from understudy.controller import vault
from understudy.controller.database import Database
from understudy.controller.naming import check_name, has_control_characters
from understudy.controller.schema import CredentialRow, GuestHostKeyRow, HostRow, JobRow
from understudy.errors import NotFound, Refused, UsageError
from understudy.guests.ssh import Secret, SshAccess
from understudy.model.access import HostAccess
from understudy.model.guest_operations import GuestLogin
from understudy.model.inventory import Vm
from understudy.model.job import Host, Job


class CredentialKind(enum.StrEnum):
    """What the secret is: a password, or a private key in OpenSSH's or PEM format."""

    PASSWORD = "password"
    KEY = "key"


@dataclass(frozen=True)
class Credential:
    """Who logs in, and how."""

    name: str
    user: str
    kind: CredentialKind
    secret: str = field(repr=False)


def add_credential(database: Database, credential: Credential) -> None:
    """Store a credential; its secret is encrypted with the key of the home.

    :raises UsageError: if the name or the user is not acceptable, or the secret is empty.
    :raises Refused: if the name is taken.
    """
    what = f"add credential {credential.name!r}"
    check_name(what, credential.name)
    if not credential.user or has_control_characters(credential.user):
        raise UsageError(what, f"{credential.user!r} is no user", "name the user that logs in, e.g. root")
    if not credential.secret:
        raise UsageError(what, "the secret is empty", "give a password or a private key")
    sealed = vault.seal(database.home, credential.secret)
    with database.transaction() as session:
        if session.get(CredentialRow, credential.name) is not None:
            raise Refused(what, "the name is taken", "choose another name, or remove the old one first")
        session.add(CredentialRow(name=credential.name, user=credential.user, kind=credential.kind.value,
                                  secret=sealed))


def list_credentials(database: Database) -> tuple[tuple[str, str, CredentialKind], ...]:
    """``(name, user, kind)`` of all credentials, by name; never a secret."""
    with database.reading() as session:
        rows = session.scalars(select(CredentialRow).order_by(CredentialRow.name))
        return tuple((row.name, row.user, CredentialKind(row.kind)) for row in rows)


def get_credential(database: Database, name: str) -> Credential:
    """The credential called ``name``, with its secret.

    :raises NotFound: if there is none.
    :raises DatabaseError: if its secret cannot be decrypted.
    """
    with database.reading() as session:
        row = credential_row(session, name)
        return Credential(row.name, row.user, CredentialKind(row.kind), vault.unseal(database.home, row.secret))


def host_access(database: Database, host: Host) -> HostAccess:
    """How a host is reached.

    :raises NotFound: if its credential is gone.
    :raises DatabaseError: if the secret cannot be decrypted.
    """
    if not host.credential:
        return HostAccess(host.uri, thumbprint=host.thumbprint, library=host.library)
    credential = get_credential(database, host.credential)
    return HostAccess(host.uri, credential.user, credential.secret, host.thumbprint, host.library)


def remove_credential(database: Database, name: str) -> None:
    """Forget a credential.

    :raises NotFound: if there is none.
    :raises Refused: if a job or a host uses it.
    """
    with database.transaction() as session:
        row = credential_row(session, name)
        users = [job.name for job in session.scalars(select(JobRow).order_by(JobRow.name))
                 if any(item.get("credential") == name for item in job.guests)]
        if users:
            raise Refused(f"remove credential {name!r}", f"job {users[0]!r} uses it",
                          f"change it: understudy job guest {users[0]!r} --credential OTHER")
        host = session.scalar(select(HostRow.name).where(HostRow.credential == name).order_by(HostRow.name))
        if host is not None:
            raise Refused(f"remove credential {name!r}", f"host {host!r} uses it",
                          f"change it: understudy host set {host!r} --credential OTHER")
        session.delete(row)


def credential_row(session: Session, name: str) -> CredentialRow:
    """For the controller package: the row, or NotFound."""
    row = session.get(CredentialRow, name)
    if row is None:
        raise NotFound(f"credential {name!r}", "no such credential", "see 'understudy credential list'")
    return row


def host_key(database: Database, address: str) -> str:
    """The host key that was accepted for ``address``: its type and base64; empty if none was."""
    with database.reading() as session:
        row = session.get(GuestHostKeyRow, address)
        return row.key if row is not None else ""


def accept_host_key(database: Database, address: str, key: str) -> None:
    """From now on ``address`` must show this host key, whatever it was before."""
    with database.transaction() as session:
        session.merge(GuestHostKeyRow(address=address, key=key))


def ssh_access(database: Database, job: Job, vm: Vm) -> SshAccess | None:
    """How the guest of ``vm`` is reached by SSH; None if ``job`` names no address or no credential for it.

    :raises NotFound: if the credential is gone.
    :raises DatabaseError: if its secret cannot be decrypted.
    """
    settings = job.guest(vm.name)
    if not settings.address or not settings.credential:
        return None
    login = get_credential(database, settings.credential)
    secret = Secret(login.secret)
    return SshAccess(
        address=settings.address,
        user=login.user,
        password=secret if login.kind is CredentialKind.PASSWORD else None,
        key=secret if login.kind is CredentialKind.KEY else None,
        host_key=host_key(database, settings.address),
    )


def guest_login(database: Database, job: Job, vm: Vm) -> GuestLogin | None:
    """Who logs in to the guest of ``vm`` by a password; None if ``job`` names no credential with one for it.

    :raises NotFound: if the credential is gone.
    :raises DatabaseError: if its secret cannot be decrypted.
    """
    name = job.guest(vm.name).credential
    if not name:
        return None
    login = get_credential(database, name)
    return GuestLogin(login.user, login.secret) if login.kind is CredentialKind.PASSWORD else None
