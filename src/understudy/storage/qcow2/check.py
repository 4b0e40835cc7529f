"""Are the layers of a restore point there, whole, and chained as recorded?"""

from __future__ import annotations

from understudy.errors import UnderstudyError
from understudy.model.replica import RestorePoint
from understudy.storage.files import datastore_error
from understudy.storage.qcow2.chains import ChainLayer, chain
from understudy.storage.qcow2.format import check_table, read_header
from understudy.storage.qcow2.manifest import Record
from understudy.storage.qcow2.names import Place


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
