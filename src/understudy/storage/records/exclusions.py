"""What do the disks of a restore point leave out? One file for each point that leaves out something, written once.

The document is ``{"understudy": "exclusions", "format": 1, "checksum": ..., "point": ..., "disks": [...]}``, see
:mod:`understudy.storage.records.sealed`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from understudy.errors import ReplicaError
from understudy.model.exclusion import Exclusion, ranges_of
from understudy.model.replica import RestorePoint
from understudy.storage.files import datastore_error
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.place import ReplicaPlace
from understudy.storage.records.sealed import sealed, unsealed
from understudy.storage.records.sidecar import content_hash, read_sidecar

FORMAT = 1
_KIND = "exclusions"


def worth_storing(exclusions: Iterable[Exclusion]) -> tuple[Exclusion, ...]:
    """Those that say something."""
    return tuple(item for item in exclusions if item.packed or item.candidates)


def render_exclusions(point: RestorePoint, exclusions: tuple[Exclusion, ...]) -> bytes:
    """The document of ``point``.

    :raises ReplicaError: if it could not be read again.
    """
    disks = [asdict(item) for item in exclusions]
    data = sealed({"understudy": _KIND, "format": FORMAT, "point": point.id, "disks": disks})
    what = f"store what restore point {point.id!r} leaves out"
    try:
        survives = parse_exclusions(what, data, point) == exclusions
    except Malformed as exc:
        raise ReplicaError(what, f"the file would be damaged: {exc}") from exc
    if not survives:
        raise ReplicaError(what, "it does not survive being written")
    return data


def parse_exclusions(what: str, data: bytes, point: RestorePoint) -> tuple[Exclusion, ...]:
    """What the document of ``point`` says.

    :param what: the act and its object, for errors.
    :raises Malformed: if it is damaged, of another point, or does not fit its disks.
    :raises ReplicaError: if it is of a newer format.
    """
    fields = Fields(f"{point.id}.excluded", unsealed(what, data, _KIND, FORMAT))
    fields.text("understudy")
    fields.number("format", 1)
    fields.text("point", lambda text: text == point.id)
    found = fields.children("disks", lambda child: _exclusion(child, point))
    fields.end()
    if len({item.disk for item in found}) != len(found):
        raise Malformed("a disk occurs twice")
    return found


def load_exclusions(place: ReplicaPlace, point: RestorePoint) -> tuple[Exclusion, ...]:
    """What the disks of ``point`` leave out.

    :raises ReplicaError: if the record names a file for that, and it is missing or damaged.
    """
    if not point.excluded:
        return ()
    what = f"read what restore point {point.id!r} of {place.what} leaves out"
    try:
        data = place.excluded(point.id).read_bytes()
        sidecar = read_sidecar(place, point.id)
        expected = sidecar.hashes.get(point.excluded) if sidecar is not None else None
        if expected not in (None, content_hash(data)):
            raise Malformed("it is not as it was published")
        return parse_exclusions(what, data, point)
    except FileNotFoundError as exc:
        raise ReplicaError(what, f"{point.excluded} is missing", "use a digest scan") from exc
    except Malformed as exc:
        raise ReplicaError(what, f"{point.excluded} is damaged: {exc}", "use a digest scan") from exc
    except OSError as exc:
        raise datastore_error(what, exc) from exc


def _exclusion(fields: Fields, point: RestorePoint) -> Exclusion:
    disk = fields.text("disk")
    part = point.disk(disk)
    if part is None:
        raise Malformed(f"the point has no disk {disk!r}")
    packed = fields.text("packed")
    try:
        ranges_of(packed, part.size)
    except ValueError as exc:
        raise Malformed(f"what disk {disk!r} leaves out: {exc}") from exc
    return Exclusion(disk, packed, fields.number_map("by_kind"), fields.text_map("candidates"))
