"""Hosts, datastores and proxies in the configuration database: one transaction per function.

Removing what something else uses is refused, and the refusal names the users.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TypeVar

from sqlalchemy import Select, delete, or_, select
from sqlalchemy.orm import Session

from understudy.controller.clock import now_iso
from understudy.controller.credentials import CredentialKind, credential_row
from understudy.controller.database import Database
from understudy.controller.host_rules import check_login, checked_host
from understudy.controller.naming import check_name, check_path, has_control_characters
from understudy.controller.schema import (
    DatastoreRow,
    FrozenGuestRow,
    HostRow,
    InvitationRow,
    JobRow,
    ProxyRow,
    ReplicaRow,
    ThrottleRow,
)
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.access import DiskLibrary
from understudy.model.job import LAYERS, SNAPSHOTS, Datastore, Host, Proxy, ProxyKind

DEFAULT_SCRATCH_DIR = "/var/lib/libvirt/understudy"
STORE_KINDS = (LAYERS, SNAPSHOTS)
LOCAL_PROXY = "local"
MAX_LIMIT = 1000
MAX_SLOTS = 1000

_SHOWN_USERS = 5

T = TypeVar("T")


@dataclass(frozen=True)
class HostChange:
    """What is to be different about a host; None for what stays."""

    max_snapshots: int | None = None
    nbd_address: str | None = None
    credential: str | None = None
    thumbprint: str | None = None
    library_dir: str | None = None
    library_plugin: str | None = None

    def applied_to(self, host: Host) -> Host:
        """The host as it is then."""
        library = DiskLibrary(
            host.library.directory if self.library_dir is None else self.library_dir,
            host.library.plugin if self.library_plugin is None else self.library_plugin,
        )
        return replace(
            host,
            max_snapshots=host.max_snapshots if self.max_snapshots is None else self.max_snapshots,
            nbd_address=host.nbd_address if self.nbd_address is None else self.nbd_address,
            credential=host.credential if self.credential is None else self.credential,
            thumbprint=host.thumbprint if self.thumbprint is None else self.thumbprint,
            library=library,
        )


def add_host(database: Database, host: Host) -> Host:
    """Store a new host; returned with its thumbprint in normal form.

    :raises UsageError: if a field is not acceptable; a URI with a password never is.
    :raises NotFound: if its credential is unknown.
    :raises Refused: if the name is taken.
    """
    what = f"add host {host.name!r}"
    check_name(what, host.name)
    host = checked_host(what, host)
    with database.transaction() as session:
        refuse_taken(session, HostRow, host.name, what)
        _check_login(session, what, host)
        row = HostRow(name=host.name, uri=host.uri, scratch_dir=host.scratch_dir)
        _set_host(row, host)
        session.add(row)
    return host


def change_host(database: Database, name: str, change: HostChange) -> Host:
    """Change what is given; the host as it is now. Tasks that wait heed it within seconds.

    :raises NotFound: if there is none of that name, or no such credential.
    :raises UsageError: if a field is not acceptable.
    """
    what = f"change host {name!r}"
    with database.transaction() as session:
        row = host_row(session, name)
        host = checked_host(what, change.applied_to(_host(row)))
        _check_login(session, what, host)
        _set_host(row, host)
        return host


def check_new_host(database: Database, host: Host) -> None:
    """Refuse what :func:`add_host` would, and store nothing: before the host's server is asked who it is."""
    what = f"add host {host.name!r}"
    check_name(what, host.name)
    host = checked_host(what, host)
    with database.reading() as session:
        refuse_taken(session, HostRow, host.name, what)
        _check_login(session, what, host)


def _check_login(session: Session, what: str, host: Host) -> None:
    if host.credential:
        login = credential_row(session, host.credential)
        check_login(what, host, login.user, by_password=login.kind == CredentialKind.PASSWORD.value)


def _set_host(row: HostRow, host: Host) -> None:
    row.max_snapshots = host.max_snapshots
    row.nbd_address = host.nbd_address
    row.credential = host.credential or None
    row.thumbprint = host.thumbprint
    row.library_dir = host.library.directory
    row.library_plugin = host.library.plugin


def list_hosts(database: Database) -> tuple[Host, ...]:
    """All hosts by name."""
    with database.reading() as session:
        return tuple(_host(row) for row in session.scalars(select(HostRow).order_by(HostRow.name)))


def get_host(database: Database, name: str) -> Host:
    """The host called ``name``.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return _host(host_row(session, name))


def remove_host(database: Database, name: str) -> None:
    """Forget a host.

    :raises NotFound: if there is none of that name.
    :raises Refused: if a job, datastore, proxy, replica, frozen guest or open invitation refers to it.
    """
    with database.transaction() as session:
        row = host_row(session, name)
        session.execute(delete(InvitationRow).where(InvitationRow.host == name, InvitationRow.over(now_iso())))
        jobs = session.scalars(select(JobRow).order_by(JobRow.name))
        users = [f"job {job.name!r}" for job in jobs if name in (job.source, job.target, *job.other_sources)]
        users += _users(session, "datastore", select(DatastoreRow.name).filter_by(host=name))
        users += _users(session, "proxy", select(ProxyRow.name).filter_by(host=name))
        users += _users(session, "replica", select(ReplicaRow.name).filter_by(target_host=name))
        users += _users(session, "frozen VM", select(FrozenGuestRow.vm_uuid).filter_by(host=name))
        users += _users(session, "invitation of proxy", select(InvitationRow.name).filter_by(host=name))
        _refuse_used(f"remove host {name!r}", users)
        session.delete(row)


def add_datastore(database: Database, datastore: Datastore) -> Datastore:
    """Store a new datastore; returned with its path in normal form.

    :raises UsageError: if a field is not acceptable.
    :raises NotFound: if the host is unknown.
    :raises Refused: if the name is taken, or another datastore is the same directory.
    """
    what = f"add datastore {datastore.name!r}"
    check_name(what, datastore.name)
    path = normal_path(what, datastore.path)
    if datastore.kind not in STORE_KINDS:
        raise UsageError(what, f"unknown kind {datastore.kind!r}", f"known kinds: {', '.join(STORE_KINDS)}")
    _check_transfers(what, datastore.max_transfers)
    with database.transaction() as session:
        _check_kind(what, datastore, _host(host_row(session, datastore.host)))
        refuse_taken(session, DatastoreRow, datastore.name, what)
        _refuse_twin(session, what, datastore.host, path, datastore.name)
        row = DatastoreRow(name=datastore.name, host=datastore.host, kind=datastore.kind, path=path,
                           max_transfers=datastore.max_transfers, marker=datastore.marker, place=datastore.place)
        session.add(row)
        return _datastore(row)


def change_datastore(
    database: Database, name: str, *, max_transfers: int | None = None, path: str | None = None,
    marker: str | None = None,
) -> Datastore:
    """Change what is given; the datastore as it is now. Tasks that wait heed a limit within seconds.

    :raises NotFound: if there is none of that name.
    :raises UsageError: if a field is not acceptable.
    :raises Refused: if another datastore is the same directory.
    """
    what = f"change datastore {name!r}"
    if max_transfers is not None:
        _check_transfers(what, max_transfers)
    path = None if path is None else normal_path(what, path)
    with database.transaction() as session:
        row = datastore_row(session, name)
        if path is not None:
            _refuse_twin(session, what, row.host, path, name)
            row.path = path
        row.max_transfers = row.max_transfers if max_transfers is None else max_transfers
        row.marker = row.marker if marker is None else marker
        return _datastore(row)


def _check_kind(what: str, datastore: Datastore, host: Host) -> None:
    """Snapshots of the replica VM are kept by platforms whose disks are no files for us, and by no others."""
    if (datastore.kind == SNAPSHOTS) is not host.by_library:
        fitting = SNAPSHOTS if host.by_library else LAYERS
        raise UsageError(what, f"host {host.name!r} keeps no datastore of kind {datastore.kind!r}",
                         f"give --kind {fitting}")
    if (datastore.kind == SNAPSHOTS) is not bool(datastore.place):
        why = ("the platform's datastore is not named" if datastore.kind == SNAPSHOTS
               else "--place is for datastores of VMware vSphere")
        raise UsageError(what, why, "give --place NAME with --kind vsphere, and only then")
    if has_control_characters(datastore.place):
        raise UsageError(what, f"{datastore.place!r} is no name of a datastore", "see the platform's own console")


def normal_path(what: str, path: str) -> str:
    """A directory's path in normal form.

    :raises UsageError: if it is not acceptable.
    """
    check_path(what, path)
    # A leading double slash survives normalisation, by POSIX.
    return "/" + str(PurePosixPath(path)).lstrip("/")


def _refuse_twin(session: Session, what: str, host: str, path: str, name: str) -> None:
    query = select(DatastoreRow.name).where(
        DatastoreRow.host == host, DatastoreRow.path == path, DatastoreRow.name != name
    )
    twin = session.scalar(query)
    if twin is not None:
        raise Refused(what, f"datastore {twin!r} is the same directory", "use that one, or choose another path")


def _check_transfers(what: str, max_transfers: int) -> None:
    if not 0 <= max_transfers <= MAX_LIMIT:
        raise UsageError(what, f"{max_transfers} is no number of disks", f"choose 0 (no limit) to {MAX_LIMIT}")


def list_datastores(database: Database) -> tuple[Datastore, ...]:
    """All datastores by name."""
    with database.reading() as session:
        return tuple(_datastore(row) for row in session.scalars(select(DatastoreRow).order_by(DatastoreRow.name)))


def get_datastore(database: Database, name: str) -> Datastore:
    """The datastore called ``name``.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return _datastore(datastore_row(session, name))


def remove_datastore(database: Database, name: str) -> None:
    """Forget a datastore; its files stay.

    :raises NotFound: if there is none of that name.
    :raises Refused: if a job uses it, or a replica lies in it.
    """
    with database.transaction() as session:
        row = datastore_row(session, name)
        users = _users(session, "job", select(JobRow.name).filter_by(datastore=name))
        users += _users(session, "replica", select(ReplicaRow.name).filter_by(datastore=name))
        _refuse_used(f"remove datastore {name!r}", users)
        session.delete(row)


def add_proxy(database: Database, proxy: Proxy) -> Proxy:
    """Store a new proxy; 0 slots mean as many as this machine has cores.

    :raises UsageError: if a field is not acceptable.
    :raises NotFound: if its host is unknown.
    :raises Refused: if the name is taken.
    """
    what = f"add proxy {proxy.name!r}"
    check_name(what, proxy.name)
    check_slots(what, proxy.slots)
    with database.transaction() as session:
        if proxy.host:
            host_row(session, proxy.host)
        refuse_taken(session, ProxyRow, proxy.name, what)
        row = ProxyRow(name=proxy.name, host=proxy.host or None, slots=proxy.slots, kind=proxy.kind.value,
                       identity=proxy.identity, control_address=proxy.control_address,
                       data_address=proxy.data_address, certificate_expires=proxy.certificate_expires)
        session.add(row)
        return proxy_value(row)


def list_proxies(database: Database) -> tuple[Proxy, ...]:
    """All proxies by name; ``local`` is always among them."""
    with database.reading() as session:
        return tuple(proxy_value(row) for row in session.scalars(select(ProxyRow).order_by(ProxyRow.name)))


def get_proxy(database: Database, name: str) -> Proxy:
    """The proxy called ``name``.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return proxy_value(proxy_row(session, name))


def remove_proxy(database: Database, name: str) -> None:
    """Forget a proxy, and with it its identity: nobody gives or takes data in its name any more.

    :raises NotFound: if there is none of that name.
    :raises Refused: if it is the built-in one, or a job or throttle uses it.
    """
    what = f"remove proxy {name!r}"
    if name == LOCAL_PROXY:
        raise Refused(what, "it is built in", "jobs can name another proxy instead")
    with database.transaction() as session:
        row = proxy_row(session, name)
        used = or_(JobRow.source_proxy == name, JobRow.target_proxy == name)
        users = _users(session, "job", select(JobRow.name).where(used))
        limited = or_(ThrottleRow.source_proxy == name, ThrottleRow.target_proxy == name)
        users += _users(session, "throttle", select(ThrottleRow.name).where(limited))
        _refuse_used(what, users)
        session.delete(row)


def check_slots(what: str, slots: int) -> None:
    """Accept a number of task slots; 0 for one for each core.

    :raises UsageError: if it is out of range.
    """
    if not 0 <= slots <= MAX_SLOTS:
        raise UsageError(what, f"{slots} is no number of task slots", f"choose 1 to {MAX_SLOTS}")


def host_row(session: Session, name: str) -> HostRow:
    """For the controller package: the host's row, or NotFound."""
    return _found(session.get(HostRow, name), "host", name)


def datastore_row(session: Session, name: str) -> DatastoreRow:
    """For the controller package: the datastore's row, or NotFound."""
    return _found(session.get(DatastoreRow, name), "datastore", name)


def proxy_row(session: Session, name: str) -> ProxyRow:
    """For the controller package: the proxy's row, or NotFound."""
    return _found(session.get(ProxyRow, name), "proxy", name)


def refuse_taken(session: Session, table: type[HostRow | DatastoreRow | ProxyRow], name: str, what: str) -> None:
    """For the controller package: Refused if the table has a row called ``name``."""
    if session.get(table, name) is not None:
        raise Refused(what, "the name is taken", "choose another name, or remove the old one first")


def _found(row: T | None, kind: str, name: str) -> T:
    if row is None:
        raise NotFound(f"{kind} {name!r}", f"no such {kind}", f"see 'understudy {kind} list'")
    return row


def _users(session: Session, kind: str, names: Select[str]) -> list[str]:
    return [f"{kind} {name!r}" for name in sorted(session.scalars(names))]


def _refuse_used(what: str, users: list[str]) -> None:
    if users:
        shown = ", ".join(users[:_SHOWN_USERS])
        more = f" and {len(users) - _SHOWN_USERS} more" if len(users) > _SHOWN_USERS else ""
        raise Refused(what, f"it is used by {shown}{more}", "remove what uses it first")


def _host(row: HostRow) -> Host:
    return Host(row.name, row.uri, row.scratch_dir, row.max_snapshots, row.nbd_address, row.credential or "",
                row.thumbprint, DiskLibrary(row.library_dir, row.library_plugin))


def _datastore(row: DatastoreRow) -> Datastore:
    return Datastore(row.name, row.host, row.kind, row.path, row.max_transfers, row.marker, row.place)


def proxy_value(row: ProxyRow) -> Proxy:
    """For the controller package: the proxy that a row is."""
    return Proxy(row.name, row.host or "", row.slots or os.cpu_count() or 1, ProxyKind(row.kind), row.identity,
                 row.control_address, row.data_address, row.certificate_expires)
