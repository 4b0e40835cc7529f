"""What has verifying found out about the points, as ``health.json`` beside ``replica.json`` remembers it?

The document is ``{"understudy": "health", "format": 1, "replica": <id>, "disks": [...], "checksum": ...}``, with a
checksum as ``replica.json``. It is knowledge, not truth: one that is missing, damaged, of another replica or of a newer
format means that nothing is known, and it is written anew. Entries of points that are gone count for nothing.

Two locks are files of their own, for ``health.json`` is replaced by renaming: ``.verify`` is held as long as layers are
verified, or merged, which exclude each other; ``.health`` while the document is read, changed and written back.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from understudy.errors import NotFound, Refused, ReplicaError
from understudy.model.extent import Extent
from understudy.model.health import DiskHealth
from understudy.model.replica import Replica
from understudy.storage.files import datastore_errors, replace_durable
from understudy.storage.records.fields import Fields, Malformed, is_utc_time
from understudy.storage.records.place import ReplicaPlace, partial
from understudy.storage.records.sealed import sealed, unsealed

LOG = logging.getLogger(__name__)
Known = dict[tuple[str, str], DiskHealth]
"""By point and disk."""
Spread = Callable[[Known], Known]
"""What is known, and what is damaged in one point also at every other that reads the same place."""
FORMAT = 1
#: What a file of any disk stays small with; what lies behind becomes one range.
MOST_BAD_RANGES = 10_000
_MODE = 0o600


def load_health(place: ReplicaPlace, replica: Replica, spread: Spread) -> tuple[DiskHealth, ...]:
    """What is known, by point and disk in the order of the record; damage shows at every point that reads it."""
    known = spread(_load(place, replica))
    return tuple(known[point.id, disk.name] for point in replica.points for disk in point.disks
                 if (point.id, disk.name) in known)


def change_health(
    place: ReplicaPlace, load: Callable[[], Replica], point: str, disk: str, change: Callable[[DiskHealth], DiskHealth]
) -> None:
    """Remember what ``change`` makes of what is remembered of a disk, durably.

    :param load: reads the replica's record.
    :raises NotFound: if there is no such point, any more.
    """
    with _flocked(place.health_lock, wait=True):
        replica = load()
        if replica.point(point).disk(disk) is None:
            raise NotFound(f"disk {disk!r} of restore point {point!r} of {place.what}", "the VM had no such disk then")
        known = _load(place, replica)
        known[point, disk] = _capped(change(known.get((point, disk)) or DiskHealth(point, disk)))
        _save(place, replica, known)


def carry_over(place: ReplicaPlace, before: Replica, after: Replica, spread: Spread) -> None:
    """Before points are retired: what is damaged in them is remembered of the points that stay and read it.

    Their content does not change by merging, so what is known of them stays right.
    """
    if not place.health.exists():
        return
    with _flocked(place.health_lock, wait=True):
        _save(place, after, spread(_load(place, before)))


@contextmanager
def alone(place: ReplicaPlace, act: str) -> Iterator[None]:
    """Nobody else verifies the replica's layers, or merges them, inside the context.

    :raises Refused: if somebody does.
    """
    with _flocked(place.verify_lock, wait=False) as locked:
        if not locked:
            raise Refused(act, "its layers are being verified or merged just now",
                          "wait for the end of that; 'understudy replica verify' can be stopped, and goes on later")
        yield


@contextmanager
def _flocked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock ``path``, whose file is there only so long; whether it is held, which it always is if ``wait``."""
    with datastore_errors(f"lock {path}"):
        fd = _open_flocked(path, wait=wait)
    if fd is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _open_flocked(path: Path, *, wait: bool) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass  # who held it before has removed it, so what we locked is a lock no more
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _capped(item: DiskHealth) -> DiskHealth:
    if len(item.bad) <= MOST_BAD_RANGES:
        return item
    first = item.bad[MOST_BAD_RANGES - 1].start
    last = Extent(first, item.bad[-1].end - first)
    return DiskHealth(**{**vars(item), "bad": (*item.bad[:MOST_BAD_RANGES - 1], last)})


def _load(place: ReplicaPlace, replica: Replica) -> Known:
    try:
        disks = _parse(place.health.read_bytes(), replica.identity.id)
    except FileNotFoundError:
        return {}
    except (OSError, Malformed, ReplicaError) as exc:
        LOG.warning("%s: nothing is known of its health: %s", place.health, exc)
        return {}
    present = {(point.id, disk.name): disk.size for point in replica.points for disk in point.disks}
    return {(item.point, item.disk): item for item in disks
            if (item.point, item.disk) in present and _fits(item, present[item.point, item.disk])}


def _fits(item: DiskHealth, size: int) -> bool:
    return item.position <= size and (not item.bad or item.bad[-1].end <= size)


def _save(place: ReplicaPlace, replica: Replica, known: Known) -> None:
    """Write the document; entries of points that ``replica`` does not have are dropped."""
    present = {(point.id, disk.name) for point in replica.points for disk in point.disks}
    items = [known[key] for key in sorted(present & known.keys())]
    with datastore_errors(f"remember the health of {place.what}"):
        replace_durable(place.health, partial(place.health), _render(replica.identity.id, items), _MODE)


def _render(replica: str, items: list[DiskHealth]) -> bytes:
    disks = [asdict(item) | {"bad": [[part.start, part.length] for part in item.bad]} for item in items]
    document = {"understudy": "health", "format": FORMAT, "replica": replica, "disks": disks}
    return sealed(document)


def _parse(data: bytes, replica: str) -> tuple[DiskHealth, ...]:
    document = unsealed("load health.json", data, "health", FORMAT)
    if document.get("replica") != replica:
        raise Malformed("it is of another replica")
    return Fields.made("health.json", document, _disks)


def _disks(fields: Fields) -> tuple[DiskHealth, ...]:
    fields.text("understudy")
    fields.number("format", 1)
    fields.text("replica")
    return fields.children("disks", _disk)


def _disk(fields: Fields) -> DiskHealth:
    return DiskHealth(
        point=fields.text("point"),
        disk=fields.text("disk"),
        started_at=fields.text("started_at", _is_time),
        position=fields.number("position", 0),
        verified_at=fields.text("verified_at", _is_time),
        bad=_ranges(fields.pairs("bad")),
        bad_blocks=fields.number("bad_blocks", 0),
        found_at=fields.text("found_at", _is_time),
        problem=fields.text("problem"),
        digests_recomputed_at=fields.text("digests_recomputed_at", _is_time))


def _is_time(text: str) -> bool:
    return not text or is_utc_time(text)


def _ranges(pairs: tuple[tuple[int, int], ...]) -> tuple[Extent, ...]:
    ranges = tuple(Extent(start, length) for start, length in pairs)
    if any(part.length <= 0 or part.start < 0 for part in ranges) or any(
            left.end >= right.start for left, right in itertools.pairwise(ranges)):
        raise Malformed("ranges are not sorted, or touch")
    return ranges
