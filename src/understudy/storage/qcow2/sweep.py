"""Which files of ours does the record not need?"""

from __future__ import annotations

from pathlib import Path

from understudy.storage.files import datastore_errors, remove_files
from understudy.storage.qcow2.chains import referenced
from understudy.storage.qcow2.leftovers import continuable_files
from understudy.storage.qcow2.manifest import Record
from understudy.storage.qcow2.names import Place
from understudy.storage.records.place import partial
from understudy.storage.values import StoreLeftovers


def remove_unneeded(place: Place, record: Record, *, keep_continuable: bool = True) -> list[str]:
    """Remove partial files and finished ones that the record does not name; what was removed, relative to the replica.

    Files that are not named as ours are stay, and layers in the making that a later session can continue, if wanted.
    """
    with datastore_errors(f"sweep {place.what}"):
        continued, unneeded = _sorted_out(place, record)
        unneeded += [] if keep_continuable else continued
        remove_files(unneeded)
    return [str(path.relative_to(place.root)) for path in unneeded]


def find_leftovers(place: Place, record: Record) -> StoreLeftovers:
    """What :func:`remove_unneeded` would find."""
    with datastore_errors(f"look for leftovers in {place.what}"):
        continued, unneeded = _sorted_out(place, record)
    return StoreLeftovers(
        tuple(map(str, continued)),
        tuple(map(str, unneeded)),
        tuple(item.disk for item in record.merging),
    )


def _sorted_out(place: Place, record: Record) -> tuple[list[Path], list[Path]]:
    """The files present of layers that can be continued, and those that nothing needs.

    :raises OSError: if a directory or journal cannot be read.
    """
    needed, continuable = _needed(place, record), continuable_files(place, record)
    present = [path for path in place.own_files() if path not in needed]
    unneeded = [path for path in present if path not in continuable]
    beside = (place.record, place.previous, place.health)
    unneeded += [path for path in map(partial, beside) if path.exists()]
    return [path for path in present if path in continuable], unneeded


def _needed(place: Place, record: Record) -> set[Path]:
    replica = record.replica
    layers, digests = referenced(replica, record.merging, record.unlisted)
    needed = {place.layers / name for name in layers} | {place.digests / name for name in digests}
    needed |= {place.root / name for name in record.kept}
    needed |= {path for point in replica.points for path in (place.definition(point.id), place.sidecar(point.id))}
    needed |= {place.points / point.nvram for point in replica.points if point.nvram}
    needed |= {place.excluded(point.id) for point in replica.points if point.excluded}
    if replica.head_point:
        head = replica.point(replica.head_point)
        needed |= {place.head_file(disk.name) for disk in head.disks}
        needed |= {place.head_nvram} if head.nvram else set()
    return needed
