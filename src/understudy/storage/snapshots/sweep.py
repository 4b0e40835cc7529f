"""Which files of ours does the record not need?"""

from __future__ import annotations

from pathlib import Path

from understudy.model.replica import Replica
from understudy.storage.files import datastore_errors, remove_files
from understudy.storage.records.place import partial
from understudy.storage.snapshots.names import Place


def remove_unneeded(place: Place, replica: Replica) -> list[str]:
    """Remove partial files and finished ones that no point needs; what was removed, relative to the replica."""
    with datastore_errors(f"sweep {place.what}"):
        found = _unneeded(place, replica)
        remove_files(found)
    return [str(path.relative_to(place.root)) for path in found]


def find_unneeded(place: Place, replica: Replica) -> list[Path]:
    """What :func:`remove_unneeded` would find."""
    with datastore_errors(f"look for leftovers in {place.what}"):
        return _unneeded(place, replica)


def _unneeded(place: Place, replica: Replica) -> list[Path]:
    needed = {path for point in replica.points for path in (place.definition(point.id), place.sidecar(point.id))}
    needed |= {place.excluded(point.id) for point in replica.points if point.excluded}
    needed |= {place.digests / disk.digest for point in replica.points for disk in point.disks}
    beside = map(partial, (place.record, place.previous, place.health))
    return [path for path in place.own_files() if path not in needed] + [path for path in beside if path.exists()]
