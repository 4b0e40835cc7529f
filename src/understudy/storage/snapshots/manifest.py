"""What does ``replica.json`` of such a replica say, how is it read, and how is it replaced?

The document is ``{"understudy": "replica of snapshots", "format": 1, "replica": {...}, "checksum": ...}``, see
:mod:`understudy.storage.records.sealed`. Without it nobody knows which snapshots are restore points, and of what.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.model.replica import Replica, ReplicaState
from understudy.storage.files import datastore_error, datastore_errors, replace_durable
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.place import partial
from understudy.storage.records.points import identity_fields, point_fields
from understudy.storage.records.sealed import sealed, unsealed
from understudy.storage.snapshots.names import Place
from understudy.storage.snapshots.points import contradictions

FORMAT = 1
_KIND = "replica of snapshots"
_MODE = 0o600
ANEW = "remove the replica and replicate it anew, or put its directory back from a copy"
"""What to do about a record that is lost or damaged."""


def load_record(place: Place) -> Replica:
    """The replica by its record.

    :raises NotFound: if there is no replica.
    :raises ReplicaError: if the record is damaged, of a newer format, or lost.
    """
    data = _read(place, place.record)
    if data is not None:
        try:
            return _parse(place.what, data)
        except Malformed as exc:
            raise ReplicaError(f"load {place.what}", f"replica.json is damaged: {exc}", ANEW) from exc
    if not place.root.parent.is_dir():
        raise DatastoreError(f"load {place.what}", "the directory of the replicas' records does not exist",
                             "check that it is mounted on the proxy's host")
    problem = record_problem(place)
    if problem:
        raise ReplicaError(f"load {place.what}", problem, ANEW)
    raise NotFound(place.what, "no such replica")


def record_problem(place: Place) -> str:
    """Why there is no record that can be used, though there are files of restore points; else empty.

    :raises ReplicaError: if the record is of a newer format.
    """
    data = _read(place, place.record)
    if data is None:
        with datastore_errors(f"look at {place.what}"):
            left = place.finished_files()
        return f"replica.json is lost, {len(left)} files of restore points are there ({left[0].name})" if left else ""
    try:
        _parse(place.what, data)
    except Malformed as exc:
        return f"replica.json is damaged: {exc}"
    return ""


def save_record(place: Place, replica: Replica) -> Replica:
    """Make ``replica`` the truth, in one durable rename; the one before is kept as ``replica.json.previous``.

    :raises ReplicaError: if it contradicts itself; nothing is changed then.
    """
    fields = asdict(replica)
    del fields["conversion"]  # nothing is ever converted here
    data = sealed({"understudy": _KIND, "format": FORMAT, "replica": fields})
    try:
        survives = _parse(place.what, data) == replica
    except Malformed as exc:
        raise ReplicaError(f"save {place.what}", f"the record would be damaged: {exc}") from exc
    if not survives:
        raise ReplicaError(f"save {place.what}", "the record does not survive being written")
    with datastore_errors(f"save {place.what}"):
        before = _read(place, place.record)
        if before is not None and not record_problem(place):
            replace_durable(place.previous, partial(place.previous), before, _MODE)
        replace_durable(place.record, partial(place.record), data, _MODE)
    return replica


def _read(place: Place, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise datastore_error(f"load {place.what}", exc) from exc


def _parse(what: str, data: bytes) -> Replica:
    return Fields.made("replica.json", unsealed(f"load {what}", data, _KIND, FORMAT), _record)


def _record(fields: Fields) -> Replica:
    fields.text("understudy")
    fields.number("format", 1)
    replica = fields.child("replica", _replica)
    problem = contradictions(replica)
    if problem:
        raise Malformed(problem)
    return replica


def _replica(fields: Fields) -> Replica:
    return Replica(
        identity=fields.child("identity", identity_fields),
        state=ReplicaState(fields.text("state", lambda text: text in set(ReplicaState))),
        points=fields.children("points", functools.partial(point_fields, is_layer=Place.is_layer)),
        head_point=fields.text("head_point"))
