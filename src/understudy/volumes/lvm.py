"""LVM: where on the physical volumes do the logical volumes lie?

Only volumes that are plain pieces of their physical volumes are told. The others are named with a reason: what lies on
a thin pool, a RAID or a snapshot's origin is not where a linear reading would put it, or is read by others too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from understudy.volumes import Image, Unfit
from understudy.volumes.lvm_labels import Label, read_label
from understudy.volumes.lvm_text import Section, Value, parse

_SECTOR = 512
_GROUP_STATUS = {"RESIZEABLE", "READ", "WRITE"}
_VOLUME_STATUS = {"READ", "WRITE", "VISIBLE", "FIXED_MINOR"}
_PHYSICAL_STATUS = {"ALLOCATABLE"}
_SEGMENT_KEYS = {"start_extent", "extent_count", "type", "stripe_count", "stripes", "tags"}
_MOST_SEGMENTS = 100_000

_T = TypeVar("_T", int, str)


class Piece(NamedTuple):
    """``length`` bytes of a logical volume: those from ``start`` of the physical volume ``pv``."""

    pv: str
    start: int
    length: int


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume.

    :ivar pieces: in the order of the volume; none if it is refused.
    :ivar refused: why nothing of it may be left out; empty if it may.
    """

    name: str
    vg: str
    pieces: tuple[Piece, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class _Physical:
    """A physical volume as its group describes it; ``first`` is its first extent, in bytes."""

    pv: str
    first: int
    extents: int


@dataclass(frozen=True)
class _Group:
    """A volume group's newest description, and of each physical volume that is there its name and image, by id."""

    name: str
    body: Section
    members: Mapping[str, tuple[str, Image]]
    refused: str


def logical_volumes(pvs: Sequence[tuple[str, Image]]) -> tuple[LogicalVolume, ...]:
    """The logical volumes of all volume groups that have a physical volume among these.

    :param pvs: name and image of each; the names are the caller's own.
    :raises Unfit: if a physical volume or a description is damaged.
    """
    labels = [(read_label(image), name, image) for name, image in pvs]
    if len({label.id for label, _, _ in labels}) != len(labels):
        raise Unfit("two LVM physical volumes have the same identity")
    members = {label.id: (name, image) for label, name, image in labels}
    found: list[LogicalVolume] = []
    for group in _groups([label for label, _, _ in labels], members):
        found += _volumes(group)
    return tuple(found)


def _groups(labels: Sequence[Label], members: Mapping[str, tuple[str, Image]]) -> Iterator[_Group]:
    """Every group is described on each of its physical volumes; all must say the same."""
    texts: dict[str, list[str]] = {}
    for text in {text: None for label in labels for text in label.texts}:
        _, body = _group_in(text)
        texts.setdefault(_get(body, "id", str), []).append(text)
    for same in texts.values():
        newest = max(same, key=lambda text: _get(_group_in(text)[1], "seqno", int))
        name, body = _group_in(newest)
        refused = "its physical volumes describe its volume group differently" if len(same) > 1 else ""
        yield _Group(name, body, members, refused or _unfit_group(body, members))


def _group_in(text: str) -> tuple[str, Section]:
    """The one section at the top is the group; its name is the section's."""
    sections = [(name, value) for name, value in parse(text).items() if isinstance(value, Mapping)]
    if len(sections) != 1:
        raise Unfit("the LVM metadata does not describe one volume group")
    return sections[0]


def _unfit_group(body: Section, members: Mapping[str, tuple[str, Image]]) -> str:
    if not set(_strings(body.get("status", ()))) <= _GROUP_STATUS:
        return "its volume group is exported, or not complete"
    if body.get("lock_type", "none") != "none":
        return "its volume group is shared by several hosts"
    for item in _sections(body, "physical_volumes").values():
        if _identity(item) not in members:
            return "a physical volume of its volume group is not among this machine's disks"
        flags = {*_strings(item.get("status", ())), *_strings(item.get("flags", ()))}
        if not flags <= _PHYSICAL_STATUS:
            return "a physical volume of its volume group is missing"
    return ""


def _volumes(group: _Group) -> list[LogicalVolume]:
    """All of one group. That two of them claim one extent condemns everything."""
    volumes = _sections(group.body, "logical_volumes")
    if group.refused:
        return [LogicalVolume(name, group.name, refused=group.refused) for name in volumes]
    extent_size = _get(group.body, "extent_size", int) * _SECTOR
    if extent_size <= 0:
        raise Unfit("the LVM volume group has no extent size")
    members = _sections(group.body, "physical_volumes")
    physical = {name: _physical(item, group, extent_size) for name, item in members.items()}
    used_by = {name: _mentioned(body) for name, body in volumes.items()}
    found: list[LogicalVolume] = []
    for name, body in volumes.items():
        refused = _unfit_volume(body)
        if not refused and any(name in used for other, used in used_by.items() if other != name):
            refused = "another logical volume is made of it, as a snapshot is"
        segments = () if refused else _segments(body)
        refused = refused or next(filter(None, (_unfit_segment(segment, physical) for segment in segments)), "")
        pieces = () if refused else tuple(_pieces(segments, physical, extent_size))
        found.append(LogicalVolume(name, group.name, pieces, refused))
    _check_overlap(found)
    return found


def _physical(item: Section, group: _Group, extent_size: int) -> _Physical:
    pv, image = group.members[_identity(item)]
    first, extents = _get(item, "pe_start", int) * _SECTOR, _get(item, "pe_count", int)
    if first < 0 or extents < 0 or first + extents * extent_size > image.size:
        raise Unfit("an LVM physical volume is larger than where it lies")
    return _Physical(pv, first, extents)


def _mentioned(body: Section) -> set[str]:
    """Every name in the volume's segments, whatever it stands for: pools, origins, mirrors' legs."""
    return {text for segment in _segments(body) for key, value in segment.items() if key not in ("type", "tags")
            for text in _strings(value)}  # fmt: skip


def _segments(body: Section) -> tuple[Section, ...]:
    count = _get(body, "segment_count", int)
    if not 0 < count <= _MOST_SEGMENTS:
        raise Unfit("an LVM logical volume has no segments, or too many")
    found = [body.get(f"segment{number}") for number in range(1, count + 1)]
    segments = tuple(item for item in found if isinstance(item, Mapping))
    if len(segments) != count:
        raise Unfit("a segment of an LVM logical volume is not described")
    return segments


def _unfit_volume(body: Section) -> str:
    status = set(_strings(body.get("status", ())))
    if "VISIBLE" not in status:
        return "it is part of another logical volume"
    return "" if status <= _VOLUME_STATUS else "it is being changed, or of a kind that is not read"


def _unfit_segment(segment: Section, physical: Mapping[str, _Physical]) -> str:
    kind = _get(segment, "type", str)
    if kind != "striped":
        return f"it is of type {kind}"
    if segment.get("stripe_count") != 1:
        return "it is striped"
    name, _ = _place(segment)
    return "" if name in physical and set(segment) <= _SEGMENT_KEYS else "it does not lie on physical volumes directly"


def _place(segment: Section) -> tuple[str, int]:
    """The physical volume, and the extent of it at which the segment begins."""
    match segment.get("stripes"):
        case [str() as name, int() as first]:
            return name, first
    raise Unfit("the LVM metadata makes no sense")


def _pieces(segments: Sequence[Section], physical: Mapping[str, _Physical], extent_size: int) -> Iterator[Piece]:
    following = 0
    for segment in sorted(segments, key=lambda item: _get(item, "start_extent", int)):
        name, first = _place(segment)
        count, place = _get(segment, "extent_count", int), physical[name]
        if _get(segment, "start_extent", int) != following or count <= 0:
            raise Unfit("the segments of an LVM logical volume do not follow each other")
        if not 0 <= first <= first + count <= place.extents:
            raise Unfit("an LVM logical volume lies outside its physical volume")
        following += count
        yield Piece(place.pv, place.first + first * extent_size, count * extent_size)


def _check_overlap(volumes: Sequence[LogicalVolume]) -> None:
    ends: dict[str, int] = {}
    pieces = [piece for volume in volumes for piece in volume.pieces]
    for piece in sorted(pieces, key=lambda item: (item.pv, item.start)):
        if piece.start < ends.get(piece.pv, 0):
            raise Unfit("two LVM logical volumes claim the same place")
        ends[piece.pv] = piece.start + piece.length


def _identity(item: Section) -> str:
    return _get(item, "id", str).replace("-", "")


def _sections(body: Section, name: str) -> dict[str, Section]:
    """The sections inside a section that may be missing."""
    inner = body.get(name, {})
    if not isinstance(inner, Mapping) or not all(isinstance(value, Mapping) for value in inner.values()):
        raise Unfit("the LVM metadata makes no sense")
    return {key: value for key, value in inner.items() if isinstance(value, Mapping)}


def _strings(value: Value) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _get(body: Section, key: str, kind: type[_T]) -> _T:
    value = body.get(key)
    if not isinstance(value, kind):
        raise Unfit(f"the LVM metadata does not say {key}")
    return value
