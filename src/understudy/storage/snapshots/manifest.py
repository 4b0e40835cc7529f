"""What does ``replica.json`` of such a replica say, how is it read, and how is it replaced?

The document is ``{"understudy": "replica of snapshots", "format": 1, "replica": {...}, "checksum": ...}``, see
:mod:`understudy.storage.records.sealed`. Without it nobody knows which snapshots are restore points, and of what.
"""

from __future__ import annotations

import functools
from dataclasses import asdict

from understudy.model.replica import Replica, ReplicaState
from understudy.storage.records.document import Document
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.points import identity_fields, point_fields
from understudy.storage.records.sealed import sealed, unsealed
from understudy.storage.snapshots.names import Place
from understudy.storage.snapshots.points import contradictions

FORMAT = 1
_KIND = "replica of snapshots"
ANEW = "remove the replica and replicate it anew, or put its directory back from a copy"
"""What to do about a record that is lost or damaged."""


def load_record(place: Place) -> Replica:
    """The replica by its record; see :meth:`understudy.storage.records.document.Document.load`."""
    return _DOCUMENT.load(place)


def record_problem(place: Place) -> str:
    """Why there is no record that can be used, though there are files of restore points; else empty."""
    return _DOCUMENT.problem(place)


def save_record(place: Place, replica: Replica) -> Replica:
    """Make ``replica`` the truth; see :meth:`understudy.storage.records.document.Document.save`."""
    return _DOCUMENT.save(place, replica)


def _render(replica: Replica) -> bytes:
    fields = asdict(replica)
    del fields["conversion"]  # nothing is ever converted here
    return sealed({"understudy": _KIND, "format": FORMAT, "replica": fields})


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


_DOCUMENT = Document(_parse, _render, ANEW)
