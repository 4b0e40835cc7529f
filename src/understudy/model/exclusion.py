"""What of a disk is left out of a restore point: E of safety rule S10. On the replica it reads as zeros.

An exclusion is state: it is stored with its point, because a block that leaves it must be copied although nobody wrote
to it (a file that was renamed out of an excluded folder), and one that enters it must become zero.
"""

from __future__ import annotations

import base64
import binascii
import enum
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.model.extent import PART, Extent, merge, round_in

#: So many ranges of a disk at most, the longest ones: it bounds what travels and is stored.
MOST_RANGES = 65536
#: Notes of one disk, and the characters of one: a guest's names may stand in them.
MOST_NOTES, LONGEST_NOTE = 100, 500
_MOST_BYTES = 20 * MOST_RANGES
_MOST_BITS = 63


class Kind(enum.StrEnum):
    """Why bytes are left out: swap and page files, what the user's masks name, blocks that hold no file."""

    SWAP = "swap"
    MASK = "mask"
    FREE = "free"


@dataclass(frozen=True)
class Exclusion:
    """What one disk leaves out.

    :ivar packed: the ranges, see :func:`pack`; at borders of 64 KiB parts, or ending with the disk.
    :ivar by_kind: bytes left out for each :class:`Kind`.
    :ivar candidates: what was found and may be left out when it is found again unmoved, by volume and path.
    """

    disk: str
    packed: str = ""
    by_kind: Mapping[str, int] = field(default_factory=dict)
    candidates: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranges(self) -> tuple[Extent, ...]:
        """The ranges, sorted and merged."""
        return unpack(self.packed)


@dataclass(frozen=True)
class DiskSurvey:
    """What a look into the volumes of one disk found.

    :ivar used: bytes that the file systems on it say are in use, whatever is left out.
    :ivar notes: what was not left out although it was wished for, and why.
    """

    exclusion: Exclusion
    used: int = 0
    notes: tuple[str, ...] = ()


def exclusion_of(exclusions: Iterable[Exclusion], disk: str) -> Exclusion:
    """That of ``disk``; an empty one if there is none."""
    return next((item for item in exclusions if item.disk == disk), Exclusion(disk))


def excludable(ranges: Iterable[Extent], size: int) -> tuple[Extent, ...]:
    """What of ``ranges``, sorted and merged, can be left out of a disk of ``size`` bytes: whole parts (G13)."""
    whole = round_in(ranges, PART, size)
    if len(whole) > MOST_RANGES:
        longest = sorted(whole, key=lambda item: item.length, reverse=True)[:MOST_RANGES]
        whole = sorted(longest, key=lambda item: item.start)
    return tuple(whole)


def pack(ranges: Sequence[Extent]) -> str:
    """A range list as text: gaps and lengths as LEB128 numbers, deflated, in base64. Nothing is the empty text.

    :raises ValueError: if they are too many, or not sorted and disjoint.
    """
    if len(ranges) > MOST_RANGES:
        raise ValueError(f"{len(ranges)} ranges are too many")
    end, numbers = 0, bytearray()
    for item in ranges:
        if item.start < end or item.length <= 0:
            raise ValueError(f"the range at {item.start} is not in order")
        for number in (item.start - end, item.length):
            while number >= 0x80:
                numbers.append(number & 0x7F | 0x80)
                number >>= 7
            numbers.append(number)
        end = item.end
    return base64.b64encode(zlib.compress(bytes(numbers))).decode("ascii") if ranges else ""


def unpack(packed: str) -> tuple[Extent, ...]:
    """The range list in a text of :func:`pack`.

    :raises ValueError: if it is none.
    """
    if not packed:
        return ()
    try:
        inflate = zlib.decompressobj()
        numbers = inflate.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
    except (binascii.Error, zlib.error) as exc:
        raise ValueError(f"packed ranges are damaged: {exc}") from exc
    if not inflate.eof or inflate.unused_data:
        raise ValueError("packed ranges are cut, or too many")
    found: list[Extent] = []
    end = 0
    decoded = _numbers(numbers)
    for gap, length in zip(decoded, decoded, strict=True):
        if not length:
            raise ValueError("a packed range is empty")
        found.append(Extent(end + gap, length))
        end = found[-1].end
    return tuple(found)


def _numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > _MOST_BITS:
            raise ValueError("a packed number is too large")
        if not byte & 0x80:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("packed ranges are cut")


def ranges_of(packed: str, size: int) -> tuple[Extent, ...]:
    """The ranges in a text of :func:`pack` that are those of a disk of ``size`` bytes, sorted and merged.

    :raises ValueError: if they are none: not inside the disk, or not at borders of parts.
    """
    found = tuple(merge(unpack(packed)))
    for item in found:
        if item.end > size or item.start % PART or (item.end % PART and item.end != size):
            raise ValueError(f"the range of {item.length} bytes at {item.start} is none of a disk of {size} bytes")
    return found
