"""Datastores and their markers: given at first use, followed when they move, missed when they are not mounted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.cli.command_line import REPLICA
from understudy.controller import catalog
from understudy.controller.database import Database
from understudy.controller.datastores import marked_datastore, moved_datastore, proved_datastore
from understudy.controller.replicas import save_replica
from understudy.errors import DatastoreError, Refused, UsageError
from understudy.model.job import Datastore, Host
from understudy.mover import api, operations_target
from understudy.mover.client import MoverClient

ACTS: dict[type, Any] = {
    api.CheckDatastore: operations_target.check_datastore,
    api.MarkDatastore: operations_target.mark_datastore,
    api.ListReplicas: operations_target.query_replicas,
}


class Mover:
    """A proxy's operations, without the proxy."""

    def call(self, request: object, _response: type) -> Any:
        return ACTS[type(request)](None, request)


MOVER = cast("MoverClient", Mover())


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Datastore:
    catalog.add_host(database, Host("dr", "qemu:///system", "/scratch"))
    return catalog.add_datastore(database, Datastore("vault", "dr", "qcow2", str(tmp_path / "vault")))


def make(store: Datastore, replica: str = "") -> Path:
    path = Path(store.path)
    path.mkdir()
    if replica:
        (path / replica).mkdir()
        (path / replica / "replica.json").touch()
    return path


def known(database: Database, store: Datastore) -> None:
    save_replica(database, REPLICA, store.name, store.host)


def test_a_datastore_is_marked_when_it_is_added_or_at_first_use(database: Database, store: Datastore) -> None:
    assert marked_datastore(database, MOVER, store) == store  # there is no directory yet
    with pytest.raises(DatastoreError, match="does not exist"):
        proved_datastore(database, MOVER, store)
    path = make(store)
    marked = proved_datastore(database, MOVER, store)
    assert marked.marker
    assert catalog.get_datastore(database, "vault") == marked == proved_datastore(database, MOVER, marked)
    path.rename(path.with_name("away"))
    path.mkdir()
    with pytest.raises(DatastoreError, match="is it mounted"):
        proved_datastore(database, MOVER, marked)
    assert list(path.iterdir()) == []


def test_a_marker_of_another_controller_is_kept(database: Database, store: Datastore) -> None:
    make(store)
    first = marked_datastore(database, MOVER, store).marker
    catalog.remove_datastore(database, "vault")
    again = catalog.add_datastore(database, store)
    assert again.marker == ""
    assert marked_datastore(database, MOVER, again).marker == first


def test_an_older_datastore_is_marked_only_where_one_of_its_replicas_is(database: Database, store: Datastore) -> None:
    known(database, store)
    path = make(store)
    with pytest.raises(DatastoreError, match="none of the replicas that it had"):
        proved_datastore(database, MOVER, store)
    assert list(path.iterdir()) == []
    (path / REPLICA.identity.name).mkdir()
    (path / REPLICA.identity.name / "replica.json").touch()
    assert proved_datastore(database, MOVER, store).marker


def test_a_datastore_that_moved_is_known_by_its_marker(database: Database, store: Datastore, tmp_path: Path) -> None:
    path = make(store)
    marked = proved_datastore(database, MOVER, store)
    (tmp_path / "other").mkdir()
    for wrong, why in ((tmp_path / "other", "is it mounted"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(DatastoreError, match=why):
            moved_datastore(database, MOVER, marked, str(wrong), accept=False)
    with pytest.raises(UsageError):
        moved_datastore(database, MOVER, marked, "relative", accept=False)
    path.rename(tmp_path / "new")
    moved = moved_datastore(database, MOVER, marked, str(tmp_path / "new"), accept=False)
    assert (moved.path, moved.marker) == (str(tmp_path / "new"), marked.marker)
    assert catalog.get_datastore(database, "vault") == moved


def test_another_directory_is_taken_if_the_operator_says_so(
    database: Database, store: Datastore, tmp_path: Path
) -> None:
    make(store)
    marked = proved_datastore(database, MOVER, store)
    (tmp_path / "other").mkdir()
    taken = moved_datastore(database, MOVER, marked, str(tmp_path / "other"), accept=True)
    assert taken.marker not in ("", marked.marker)
    assert proved_datastore(database, MOVER, taken) == taken


def test_two_datastores_are_never_one_directory(database: Database, store: Datastore, tmp_path: Path) -> None:
    make(store)
    second = catalog.add_datastore(database, Datastore("twin", "dr", "qcow2", str(tmp_path / "twin")))
    with pytest.raises(Refused, match="'vault' is the same directory"):
        moved_datastore(database, MOVER, second, store.path, accept=True)
