"""Are the layers of a restore point there, whole, and chained as recorded?"""

from __future__ import annotations

from understudy.errors import ReplicaError, UnderstudyError
from understudy.model.replica import RestorePoint
from understudy.storage.files import datastore_error, datastore_errors
from understudy.storage.qcow2.chains import ChainLayer, chain
from understudy.storage.qcow2.format import check_table, read_header
from understudy.storage.qcow2.manifest import Record
from understudy.storage.qcow2.names import Place
from understudy.storage.records.exclusions import load_exclusions
from understudy.storage.records.sidecar import altered, read_sidecar


def damage(place: Place, record: Record, point: RestorePoint) -> list[str]:
    """What is wrong with the layers of ``point``, by their headers, first tables and lengths; empty if nothing is."""
    return [text for disk in point.disks for text in disk_damage(place, record, point, disk.name)]


def disk_damage(place: Place, record: Record, point: RestorePoint, disk: str) -> list[str]:
    """The same for one disk."""
    found = []
    for layer in chain(record.replica, record.merging, point, disk, record.unlisted):
        problem = _layer_damage(place, layer)
        if problem:
            found.append(f"disk {disk}: layer {layer.file}: {problem}")
    return found


def losses(place: Place, point: RestorePoint) -> list[str]:
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


def _lost_exclusions(place: Place, point: RestorePoint) -> list[str]:
    """No failover needs to know what is left out, so it is told as a loss of the disks."""
    try:
        load_exclusions(place, point)
    except ReplicaError as exc:
        return [f"disk {disk.name}: what it leaves out is lost: {exc.why}" for disk in point.disks]
    return []


def _layer_damage(place: Place, layer: ChainLayer) -> str:
    path = place.layers / layer.file
    try:
        length = path.stat().st_size
        if layer.file_bytes not in (None, length):
            return f"{length} bytes long instead of {layer.file_bytes}"
        header = read_header(path)
        check_table(path, header)
    except FileNotFoundError:
        return "missing"
    except OSError as exc:
        return datastore_error("read it", exc).why
    except UnderstudyError as exc:
        return exc.why
    if layer.size not in (None, header.size):
        return f"shows a disk of {header.size} bytes instead of {layer.size}"
    if header.snapshots:
        return f"has {header.snapshots} snapshots inside"
    if header.backing not in layer.backings:
        return f"lies on {header.backing or 'nothing'} instead of {min(layer.backings) or 'nothing'}"
    return ""
