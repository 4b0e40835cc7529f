"""What is written beside the disks of a restore point at its publish, and read again?"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from understudy.errors import ReplicaError
from understudy.model.replica import ReplicaIdentity, RestorePoint
from understudy.storage.files import datastore_error
from understudy.storage.records.exclusions import render_exclusions, worth_storing
from understudy.storage.records.place import ReplicaPlace
from understudy.storage.records.sidecar import Sidecar, content_hash, render_sidecar
from understudy.storage.values import PointMeta


def point_contents(
    place: ReplicaPlace, identity: ReplicaIdentity, point: RestorePoint, meta: PointMeta
) -> dict[Path, bytes]:
    """The files below ``points/`` of a new point, and what is in each; the last one tells of all others.

    :raises ReplicaError: if something of it could not be read again.
    """
    contents = {place.definition(point.id): meta.definition.encode()}
    if point.nvram:
        contents[place.nvram(point.id)] = _decoded(f"restore point {point.id!r} of {place.what}", meta.nvram)
    if point.excluded:
        contents[place.excluded(point.id)] = render_exclusions(point, worth_storing(meta.exclusions))
    hashes = {path.name: content_hash(content) for path, content in contents.items()}
    contents[place.sidecar(point.id)] = render_sidecar(Sidecar(point, identity, hashes))
    return contents


def load_definition(place: ReplicaPlace, point: RestorePoint) -> str:
    """The VM definition stored with ``point``.

    :raises ReplicaError: if the file is missing or damaged.
    """
    what = f"definition of restore point {point.id!r} of {place.what}"
    try:
        return place.definition(point.id).read_bytes().decode()
    except (FileNotFoundError, UnicodeDecodeError) as exc:
        raise ReplicaError(what, "missing or damaged", "use another restore point") from exc
    except OSError as exc:
        raise datastore_error(f"read {what}", exc) from exc


def _decoded(what: str, nvram: str) -> bytes:
    try:
        return base64.b64decode(nvram, validate=True)
    except binascii.Error as exc:
        raise ReplicaError(f"publish {what}", "the UEFI variables are no base64 text") from exc
