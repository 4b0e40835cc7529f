"""What does a restore point say of itself? One file for each, written once, for the day when the record is lost."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

from understudy.model.replica import ReplicaIdentity, RestorePoint
from understudy.storage.records.fields import Fields, Malformed
from understudy.storage.records.place import ReplicaPlace
from understudy.storage.records.points import identity_fields, point_fields
from understudy.storage.records.sealed import sealed, unsealed

FORMAT = 1
_KIND = "restore point"


@dataclass(frozen=True)
class Sidecar:
    """A restore point at its publish. Its layers' names and lengths are of that instant: a merge changes them.

    :ivar identity: whose replica it was then.
    :ivar hashes: SHA-256 of the files below ``points/`` that belong to it, by name.
    """

    point: RestorePoint
    identity: ReplicaIdentity
    hashes: dict[str, str]


def render_sidecar(sidecar: Sidecar) -> bytes:
    """The sidecar as a document with its checksum."""
    return sealed({"understudy": _KIND, "format": FORMAT, **asdict(sidecar)})


def read_sidecar(place: ReplicaPlace, point: str) -> Sidecar | None:
    """The sidecar of ``point``; None if it has none, or a damaged one.

    :raises ReplicaError: if it is of a newer format.
    :raises OSError: if it cannot be read.
    """
    path = place.sidecar(point)
    try:
        document = unsealed(f"read {path}", path.read_bytes(), _KIND, FORMAT)
        sidecar = Fields.made(path.name, document, functools.partial(_sidecar, is_layer=place.is_layer))
    except (FileNotFoundError, Malformed):
        return None
    return sidecar if sidecar.point.id == point else None


def content_hash(content: bytes) -> str:
    """What :attr:`Sidecar.hashes` has for this content."""
    return hashlib.sha256(content).hexdigest()


def altered(place: ReplicaPlace, sidecar: Sidecar, *, without: str) -> list[str]:
    """Files of the point below ``points/``, ``without`` one, that are missing, or not as they were published.

    :raises OSError: if one cannot be read.
    """
    found = []
    for name, expected in sorted(sidecar.hashes.items()):
        if name == without:
            continue
        try:
            content = (place.points / name).read_bytes()
        except FileNotFoundError:
            found.append(f"{name} is missing")
        else:
            if content_hash(content) != expected:
                found.append(f"{name} is not as it was published")
    return found


def _sidecar(fields: Fields, is_layer: Callable[[str], bool]) -> Sidecar:
    fields.text("understudy")
    fields.number("format", 1)
    point = fields.child("point", functools.partial(point_fields, is_layer=is_layer))
    # The names are made of the point's own id: no path from a document is ever opened.
    hashes = {name: value for name, value in fields.text_map("hashes").items()
              if name in (f"{point.id}.xml", point.nvram, point.excluded)}
    return Sidecar(point, fields.child("identity", identity_fields), hashes)
