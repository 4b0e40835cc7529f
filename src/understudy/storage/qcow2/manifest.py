"""What does ``replica.json`` say, and can it be trusted?

The document is ``{"understudy": "replica", "format": 1, "checksum": ..., "replica": {...}, "merging": [...]}``, see
:mod:`understudy.storage.records.sealed`. Records that were rebuilt from files have ``unlisted`` and ``kept`` too. The
record before the present one is kept beside it.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.model.replica import Conversion, Replica, ReplicaState
from understudy.storage.files import datastore_error, datastore_errors, replace_durable
from understudy.storage.qcow2.chains import MergingDisk, UnlistedLayer, contradictions
from understudy.storage.qcow2.names import Place
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.place import partial
from understudy.storage.records.points import SECTOR, identity_fields, point_fields
from understudy.storage.records.sealed import sealed, unsealed

FORMAT = 1
_MODE = 0o600
REBUILD = "rebuild it: 'understudy replica rebuild DATASTORE/REPLICA'"
"""What to do about a record that is lost or damaged."""


@dataclass(frozen=True)
class Record:
    """The content of ``replica.json``.

    :ivar merging: the disks of the oldest point whose layers are being merged; empty unless a retirement is unfinished.
    :ivar unlisted: layers of no point on record that points on record lie on, see :class:`UnlistedLayer`.
    :ivar kept: files, relative to the replica, of points that could not be proved at a rebuild: they stay.
    """

    replica: Replica
    merging: tuple[MergingDisk, ...] = ()
    unlisted: tuple[UnlistedLayer, ...] = ()
    kept: tuple[str, ...] = ()


def load_record(place: Place) -> Record:
    """The record of the replica.

    :raises NotFound: if there is no replica.
    :raises ReplicaError: if the record is damaged, of a newer format, or lost.
    """
    data = _read(place, place.record)
    if data is not None:
        return parse_record(place.what, data)
    if not place.root.parent.is_dir():
        raise DatastoreError(f"load {place.what}", "the datastore directory does not exist",
                             "check that the datastore is mounted")
    problem = record_problem(place)
    if problem:
        raise ReplicaError(f"load {place.what}", problem, REBUILD)
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


def previous_record(place: Place) -> Record | None:
    """The record before the present one; None if it is missing or damaged. It may tell of points that are gone."""
    data = _read(place, place.previous)
    try:
        return None if data is None else _parse(place.what, data)
    except Malformed:
        return None


def _read(place: Place, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise datastore_error(f"load {place.what}", exc) from exc


def save_record(place: Place, record: Record) -> Record:
    """Make ``record`` the truth, in one durable rename; the one before is kept as ``replica.json.previous``.

    :raises ReplicaError: if it contradicts itself; nothing is changed then.
    """
    data = render_record(record)
    try:
        survives = _parse(place.what, data) == record
    except Malformed as exc:
        raise ReplicaError(f"save {place.what}", f"the record would be damaged: {exc}") from exc
    if not survives:
        raise ReplicaError(f"save {place.what}", "the record does not survive being written")
    with datastore_errors(f"save {place.what}"):
        before = _read(place, place.record)
        if before is not None and not record_problem(place):
            replace_durable(place.previous, partial(place.previous), before, _MODE)
        replace_durable(place.record, partial(place.record), data, _MODE)
    return record


def render_record(record: Record) -> bytes:
    """``record`` as a document with its checksum."""
    document = {"understudy": "replica", "format": FORMAT, "replica": asdict(record.replica),
                "merging": [asdict(disk) for disk in record.merging]}
    if record.unlisted or record.kept:
        document |= {"unlisted": [asdict(layer) for layer in record.unlisted], "kept": list(record.kept)}
    return sealed(document)


def parse_record(what: str, data: bytes) -> Record:
    """The record in a document; ``what`` names the replica in errors.

    :raises ReplicaError: if the document is damaged, of a newer format, or contradicts itself.
    """
    try:
        return _parse(what, data)
    except Malformed as exc:
        raise ReplicaError(f"load {what}", f"replica.json is damaged: {exc}", REBUILD) from exc


def _parse(what: str, data: bytes) -> Record:
    return Fields.made("replica.json", unsealed(f"load {what}", data, "replica", FORMAT), _record)


def _record(fields: Fields) -> Record:
    fields.text("understudy")
    fields.number("format", 1)
    replica, merging = fields.child("replica", _replica), fields.children("merging", _merging)
    rebuilt = fields.has("unlisted")
    unlisted = fields.children("unlisted", _unlisted) if rebuilt else ()
    kept = fields.texts("kept") if rebuilt else ()
    problem = contradictions(replica, merging, unlisted)
    if problem:
        raise Malformed(problem)
    return Record(replica, merging, unlisted, kept)


def _replica(fields: Fields) -> Replica:
    return Replica(
        identity=fields.child("identity", identity_fields),
        state=ReplicaState(fields.text("state", lambda text: text in set(ReplicaState))),
        points=fields.children("points", functools.partial(point_fields, is_layer=Place.is_layer)),
        head_point=fields.text("head_point"),
        conversion=Conversion(fields.text("conversion", lambda text: text in set(Conversion)))
        if fields.has("conversion") else Conversion.NONE)


def _merging(fields: Fields) -> MergingDisk:
    return MergingDisk(fields.text("disk"), fields.texts("below", Place.is_layer))


def _unlisted(fields: Fields) -> UnlistedLayer:
    return UnlistedLayer(
        disk=fields.text("disk", bool),
        file=fields.text("file", Place.is_layer),
        size=fields.number("size", SECTOR, SECTOR),
        backing=fields.text("backing", lambda text: not text or Place.is_layer(text)),
        file_bytes=fields.number("file_bytes", 1))
