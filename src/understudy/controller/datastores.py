"""Is this directory the datastore that was added? A marker file tells; a datastore without one gets it at first use."""

from __future__ import annotations

from dataclasses import replace

from understudy.controller import catalog
from understudy.controller.database import Database
from understudy.controller.replicas import list_replicas
from understudy.errors import DatastoreError
from understudy.model.job import Datastore
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.replication.target_side import check_marker


def proved_datastore(database: Database, mover: MoverClient, datastore: Datastore) -> Datastore:
    """The datastore, which has been found where it should be; with its marker from the first use on.

    :param mover: a proxy that has its directory.
    :raises DatastoreError: if the directory is missing, or is not the datastore that was added.
    """
    facts = mover.call(api.CheckDatastore(datastore.path), api.DatastoreAnswer).facts
    check_marker(datastore, facts)
    if datastore.marker or not facts.writable:
        return datastore
    _refuse_emptied(database, mover, datastore)
    return catalog.change_datastore(database, datastore.name, marker=_marked(mover, datastore.path))


def marked_datastore(database: Database, mover: MoverClient, datastore: Datastore) -> Datastore:
    """A datastore that was just added, with its marker; without one if its directory does not exist yet."""
    facts = mover.call(api.CheckDatastore(datastore.path), api.DatastoreAnswer).facts
    return proved_datastore(database, mover, datastore) if facts.exists else datastore


def moved_datastore(
    database: Database, mover: MoverClient, datastore: Datastore, path: str, *, accept: bool
) -> Datastore:
    """The datastore lies in directory ``path`` from now on.

    :param accept: whatever is there is the datastore from now on; else it must be the one that was added.
    :raises DatastoreError: if it is another one, or cannot be used; nothing is changed then.
    """
    moved = replace(datastore, path=catalog.normal_path(f"change datastore {datastore.name!r}", path))
    if accept:
        moved = replace(moved, marker=_marked(mover, moved.path))
    else:
        check_marker(moved, mover.call(api.CheckDatastore(moved.path), api.DatastoreAnswer).facts)
        _refuse_emptied(database, mover, moved)
    return catalog.change_datastore(database, datastore.name, path=moved.path, marker=moved.marker)


def _marked(mover: MoverClient, path: str) -> str:
    return mover.call(api.MarkDatastore(path), api.DatastoreMarker).marker


def _refuse_emptied(database: Database, mover: MoverClient, datastore: Datastore) -> None:
    """Without a marker nothing but its replicas tells a datastore: one of those that are known must be there."""
    known = {record.name for record in list_replicas(database) if record.datastore == datastore.name}
    if datastore.marker or not known:
        return
    if known.isdisjoint(mover.call(api.ListReplicas(datastore.kind, datastore.path), api.ReplicaNames).names):
        raise DatastoreError(
            f"datastore {datastore.name!r}", f"this is not the datastore that was added: is it mounted? "
            f"({datastore.path} has none of the replicas that it had)",
            f"mount it; if it is empty on purpose, 'understudy datastore set {datastore.name} --accept'",
        )
