"""Survey: what of the disks of a VM can be left out? Disks, partitions, logical volumes and file systems, put together.

What one volume's reader refuses, or breaks on, concerns this volume alone. Pure but for what it logs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.model.exclusion import (
    LONGEST_NOTE,
    MOST_NOTES,
    DiskSurvey,
    Exclusion,
    Kind,
    excludable,
    exclusion_of,
    pack,
)
from understudy.model.extent import Extent, merge, subtract, total
from understudy.volumes import FileSystem, Finding, Hibernated, Image, Unfit, Wishes
from understudy.volumes.device_names import names_of
from understudy.volumes.image import Piece, Pieces
from understudy.volumes.lvm import LogicalVolume
from understudy.volumes.mounted import Mounted, Told
from understudy.volumes.mounts import layout_of
from understudy.volumes.partitions import Partition
from understudy.volumes.signatures import EMPTY, LVM, NTFS, SWAP, UNKNOWN
from understudy.volumes.windows import runs_from

LOG = logging.getLogger(__name__)

#: What a guest may have on its disks if it is Windows.
_ON_WINDOWS = frozenset({NTFS, EMPTY, UNKNOWN, "vfat", "exfat", "ReFS", "BitLocker"})


@dataclass(frozen=True)
class Readers:
    """Who reads what.

    :ivar partitions: the partitions of a disk; the whole disk as one if it has no table.
    :ivar recognise: what is on a volume: a key of ``file_systems``, ``swap``, ``lvm``, ``empty`` or another name.
    :ivar file_systems: opens a file system, by what was recognised.
    """

    partitions: Callable[[Image], Sequence[Partition]]
    recognise: Callable[[Image], str]
    swap_finding: Callable[[Image, Wishes], Finding]
    logical_volumes: Callable[[Sequence[tuple[str, Image]]], Sequence[LogicalVolume]]
    file_systems: Mapping[str, Callable[[Image], FileSystem]]


@dataclass(frozen=True)
class Disk:
    """One disk of the VM."""

    name: str
    image: Image


@dataclass(frozen=True)
class Wanted:
    """What the job wishes, for all disks of a VM.

    :ivar masks: as the administrator wrote them; they passed :func:`understudy.volumes.masks.check_mask`.
    :ivar former: what the point before left out.
    """

    swap: bool = True
    masks: tuple[str, ...] = ()
    free: bool = False
    quiesced: bool = False
    former: tuple[Exclusion, ...] = ()


@dataclass
class _Volume:
    """``place`` as administrators know it; ``lv`` is ``vg/name`` of a logical volume."""

    place: str
    bytes: Pieces
    kind: str = ""
    lv: str = ""
    partition: Partition | None = None
    system: FileSystem | None = None

    @property
    def disks(self) -> list[str]:
        return sorted({piece.disk for piece in self.bytes.pieces})


@dataclass
class _Found:
    """What was found so far, by disk."""

    ranges: dict[str, dict[Kind, list[Extent]]] = field(default_factory=dict)
    candidates: dict[str, dict[str, str]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    asleep: bool = False

    def note(self, disks: Iterable[str], text: str) -> None:
        for disk in disks:
            self.notes.setdefault(disk, []).append(text)


def survey(disks: Sequence[Disk], wanted: Wanted, readers: Readers) -> tuple[DiskSurvey, ...]:
    """What each disk can leave out, in the order of ``disks``."""
    found = _Found()
    parts = _partitions(disks, readers, found)
    volumes = _with_logical(parts, readers, found)
    for volume in volumes:
        _guarded(volume, found, _open, volume, readers, found)
    opened = [volume for volume in volumes if volume.system is not None]
    layout = _layout(opened, wanted, found)
    doubt = _doubt(disks, parts, opened) if wanted.quiesced else ""
    for volume in volumes:
        if volume.kind == SWAP:
            _guarded(volume, found, _find_swap, volume, wanted, readers, found)
    for volume, told in zip(opened, layout, strict=True):
        _guarded(volume, found, _find, volume, told, wanted, doubt if volume.kind == NTFS else "", found)
    if found.asleep:
        # It goes on with what it has swapped out and cached, wherever that is (W2, W8).
        found.ranges, found.candidates = {}, {}
        found.note((disk.name for disk in disks), "nothing is left out: the guest is hibernated")
    return tuple(_result(disk, found) for disk in disks)


def _layout(opened: Sequence[_Volume], wanted: Wanted, found: _Found) -> tuple[Told, ...]:
    """Which masks belong to which volume. It reads files of all of them: if that breaks, none get any."""
    try:
        return layout_of([_mounted(volume) for volume in opened], wanted.masks)
    except Exception as exc:
        LOG.exception("the guest's mounts cannot be read")
        for volume in opened:
            found.note(volume.disks, f"masks are not applied: the guest's mounts cannot be read: {exc}")
        return tuple(Told() for _ in opened)


def _doubt(disks: Sequence[Disk], parts: Sequence[_Volume], opened: Sequence[_Volume]) -> str:
    """Why NTFS may not have been held still though the guest was frozen; empty if it was, for the guest is Windows.

    A Linux guest writes NTFS through FUSE, which a freeze does not stop. That there is no sign of one proves nothing:
    its own disk may be one that the job leaves out. So there must be the Windows itself, too.
    """
    ntfs = [volume for volume in opened if volume.kind == NTFS]
    if not ntfs:
        return ""
    read = {disk for part in parts for disk in part.disks}
    unread = [f"the partitions of disk {disk.name} are not known" for disk in disks if disk.name not in read]
    strange = [f"{part.place} may be one of Linux" for part in parts if part.kind not in _ON_WINDOWS]
    why = next(iter([*unread, *strange]), "")
    if not why and not any(map(_has_windows, ntfs)):
        why = "no replicated disk has a Windows that runs from it as its C:"
    return f"the guest may be a Linux, which still writes NTFS when it is frozen: {why}" if why else ""


def _has_windows(volume: _Volume) -> bool:
    """Of a volume that cannot be read, whoever looks for ranges on it is told why."""
    try:
        return runs_from(_mounted(volume))
    except Unfit:
        return False
    except Exception:
        LOG.exception("%s: the registry of Windows cannot be read", volume.place)
        return False


def _mounted(volume: _Volume) -> Mounted:
    assert volume.system is not None
    return Mounted(volume.system, names_of(volume.system.uuid, volume.system.label, volume.partition, volume.lv))


def _guarded(volume: _Volume, found: _Found, act: Callable[..., None], *values: object) -> None:
    """A reader that fails, in whatever way, leaves out nothing of its volume."""
    try:
        act(*values)
    except Unfit as exc:
        found.asleep = found.asleep or isinstance(exc, Hibernated)
        volume.system = None
        found.note(volume.disks, f"{volume.place}: {exc}")
    except Exception as exc:
        LOG.exception("%s: reader failed", volume.place)
        volume.system = None
        found.note(volume.disks, f"{volume.place}: reader failed: {type(exc).__name__}: {exc}")


def _partitions(disks: Sequence[Disk], readers: Readers, found: _Found) -> list[_Volume]:
    volumes: list[_Volume] = []
    for disk in disks:
        whole = _Volume(f"disk {disk.name}", Pieces([Piece(disk.name, disk.image, 0, disk.image.size)]))
        parts: list[Partition] = []
        _guarded(whole, found, _add_partitions, disk, parts, readers)
        for part in parts:
            place = f"{whole.place}, partition {part.number}" if part.number else whole.place
            pieces = Pieces([Piece(disk.name, disk.image, part.start, part.length)])
            volumes.append(_Volume(place, pieces, partition=part))
    for volume in volumes:
        _guarded(volume, found, _recognise, volume, readers)
    return volumes


def _add_partitions(disk: Disk, parts: list[Partition], readers: Readers) -> None:
    parts.extend(readers.partitions(disk.image))


def _find_swap(volume: _Volume, wanted: Wanted, readers: Readers, found: _Found) -> None:
    _take(volume, readers.swap_finding(volume.bytes, Wishes(swap=wanted.swap)), found)


def _recognise(volume: _Volume, readers: Readers) -> None:
    volume.kind = readers.recognise(volume.bytes)


def _with_logical(volumes: list[_Volume], readers: Readers, found: _Found) -> list[_Volume]:
    """The volumes, logical ones in place of their physical volumes."""
    physical = {volume.place: volume for volume in volumes if volume.kind == LVM}
    others = [volume for volume in volumes if volume.kind and volume.kind != LVM]
    if not physical:
        return others
    pieces = [piece for volume in physical.values() for piece in volume.bytes.pieces]
    group = _Volume("LVM", Pieces(pieces))
    logical: list[LogicalVolume] = []
    _guarded(group, found, lambda: logical.extend(
        readers.logical_volumes([(name, volume.bytes) for name, volume in physical.items()])))
    for item in logical:
        place = f"logical volume {item.vg}/{item.name}"
        if item.refused:
            found.note(group.disks, f"{place}: {item.refused}")
            continue
        parts = [part for name, start, length in item.pieces for part in physical[name].bytes.part(start, length)]
        volume = _Volume(place, Pieces(parts), lv=f"{item.vg}/{item.name}")
        if volume.bytes.size != sum(length for _, _, length in item.pieces):
            found.note(volume.disks, f"{place}: it ends behind its physical volumes")
            continue
        _guarded(volume, found, _recognise, volume, readers)
        if volume.kind:
            others.append(volume)
    return others


def _open(volume: _Volume, readers: Readers, found: _Found) -> None:
    opener = readers.file_systems.get(volume.kind)
    if opener is not None:
        volume.system = opener(volume.bytes)
        volume.place += f" ({volume.system.kind})"
    elif volume.kind not in (SWAP, EMPTY):
        what = "nothing known is on it" if volume.kind == UNKNOWN else f"{volume.kind} is not read"
        found.note(volume.disks, f"{volume.place}: {what}, nothing of it is left out")


def _find(volume: _Volume, told: Told, wanted: Wanted, doubt: str, found: _Found) -> None:
    """:param doubt: why it counts for nothing of the volume that the guest was frozen; else empty."""
    if volume.system is None:
        return
    prefix = _prefix(volume)
    # Each disk keeps what was seen on its volumes; a volume over several is kept with its first disk.
    seen = {path.removeprefix(prefix): digest
            for path, digest in exclusion_of(wanted.former, volume.bytes.pieces[0].disk).candidates.items()
            if path.startswith(prefix)}
    wishes = Wishes(wanted.swap, told.swap_files, told.masks, wanted.free, wanted.quiesced and not doubt, doubt, seen)
    for text in told.notes:
        found.note(volume.disks, f"{volume.place}: {text}")
    _take(volume, volume.system.find(wishes), found)


def _prefix(volume: _Volume) -> str:
    """Of what is seen on a volume: copies of one volume have the same UUID."""
    return f"{volume.place} {volume.system.uuid if volume.system else ''}:"


def _take(volume: _Volume, finding: Finding, found: _Found) -> None:
    """Add what was found on a volume to its disks."""
    found.asleep = found.asleep or finding.asleep
    if any(item.start < 0 or item.length <= 0 or item.end > volume.bytes.size
           for ranges in finding.ranges.values() for item in ranges):
        raise Unfit("a range lies outside of it")
    for kind, ranges in finding.ranges.items():
        for disk, item in volume.bytes.on_disks(ranges):
            found.ranges.setdefault(disk, {}).setdefault(kind, []).append(item)
    first = volume.bytes.pieces[0].disk
    found.used[first] = found.used.get(first, 0) + finding.used
    prefix = _prefix(volume)
    found.candidates.setdefault(first, {}).update(
        {prefix + path: digest for path, digest in finding.candidates.items()})
    for text in finding.notes:
        found.note(volume.disks, f"{volume.place}: {text}")


def _result(disk: Disk, found: _Found) -> DiskSurvey:
    """Of ranges that touch, a part may belong to two kinds: it is left out, and counts for the first."""
    kinds = found.ranges.get(disk.name, {})
    every = merge(sorted((item for ranges in kinds.values() for item in ranges), key=lambda item: item.start))
    left_out = excludable(every, disk.image.size)
    by_kind: dict[str, int] = {}
    rest: list[Extent] = list(left_out)
    for kind in Kind:
        ranges = merge(sorted(kinds.get(kind, ()), key=lambda item: item.start))
        after = subtract(rest, ranges)
        if len(ranges) and total(rest) > total(after):
            by_kind[str(kind)] = total(rest) - total(after)
        rest = after
    notes = tuple(dict.fromkeys(text[:LONGEST_NOTE] for text in found.notes.get(disk.name, ())))
    if len(notes) > MOST_NOTES:
        notes = (*notes[: MOST_NOTES - 1], f"and {len(notes) - MOST_NOTES + 1} more of that kind")
    exclusion = Exclusion(disk.name, pack(left_out), by_kind, found.candidates.get(disk.name, {}))
    return DiskSurvey(exclusion, found.used.get(disk.name, 0), notes)
