"""What does ``replica.json`` say, and can it be trusted?

The document is ``{"understudy": "replica", "format": 1, "checksum": ..., "replica": {...}, "merging": [...]}``, see
:mod:`understudy.storage.records.sealed`. Records that were rebuilt from files have ``unlisted`` and ``kept`` too. The
record before the present one is kept beside it.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass

from understudy.model.replica import Conversion, Replica, ReplicaState
from understudy.storage.qcow2.chains import MergingDisk, UnlistedLayer, contradictions
from understudy.storage.qcow2.names import Place
from understudy.storage.records.document import Document
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.points import SECTOR, identity_fields, point_fields
from understudy.storage.records.sealed import sealed, unsealed

FORMAT = 1
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
    """The record of the replica; see :meth:`understudy.storage.records.document.Document.load`."""
    return _DOCUMENT.load(place)


def record_problem(place: Place) -> str:
    """Why there is no record that can be used, though there are files of restore points; else empty."""
    return _DOCUMENT.problem(place)


def previous_record(place: Place) -> Record | None:
    """The record before the present one; None if it is missing or damaged. It may tell of points that are gone."""
    return _DOCUMENT.previous(place)


def save_record(place: Place, record: Record) -> Record:
    """Make ``record`` the truth; see :meth:`understudy.storage.records.document.Document.save`."""
    return _DOCUMENT.save(place, record)


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
    return _DOCUMENT.parsed(what, data)


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


_DOCUMENT = Document(_parse, render_record, REBUILD)
