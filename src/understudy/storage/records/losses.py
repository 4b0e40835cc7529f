"""Which files of a restore point, other than what holds its disks, were lost or altered?"""

from __future__ import annotations

from understudy.errors import ReplicaError
from understudy.model.replica import RestorePoint
from understudy.storage.files import datastore_errors
from understudy.storage.records.exclusions import load_exclusions
from understudy.storage.records.place import ReplicaPlace
from understudy.storage.records.sidecar import altered, read_sidecar


def losses(place: ReplicaPlace, point: RestorePoint) -> list[str]:
    """Files of ``point`` other than layers that are missing or were altered since they were published."""
    act = f"look at restore point {point.id!r} of {place.what}"
    with datastore_errors(act):
        found = [f"disk {disk.name}: digest file {disk.digest} is missing" for disk in point.disks
                 if not (place.digests / disk.digest).is_file()]
        sidecar = read_sidecar(place, point.id)
        found += _lost_exclusions(place, point)
        if sidecar is not None:
            return [*altered(place, sidecar, without=point.excluded), *found]
        files = [place.definition(point.id), *([place.points / point.nvram] if point.nvram else [])]
        return [*(f"{path.name} is missing" for path in files if not path.is_file()), *found]


def _lost_exclusions(place: ReplicaPlace, point: RestorePoint) -> list[str]:
    """No failover needs to know what is left out, so it is told as a loss of the disks."""
    try:
        load_exclusions(place, point)
    except ReplicaError as exc:
        return [f"disk {disk.name}: what it leaves out is lost: {exc.why}" for disk in point.disks]
    return []
