"""Frames: what two movers say to each other on a transfer connection, byte for byte. A strict decoder, no I/O.

Header, 40 bytes little endian: magic ``UST2``, type (u8), codec (u8), flags (u16, 0), offset (u64), raw length (u64),
wire length (u32), number (u32), checksum (u64); then wire length bytes. Number counts the frames of one connection in
one direction from 0, so that a frame that is lost, doubled or out of order is noticed at once. The checksum is the
XXH3-64 of the raw bytes, seeded with the XXH3-64 of the header before it, so that a wrong offset or length is found as
a wrong byte is.

=============  =======================================  ===========================================
type           offset, raw length                       payload
=============  =======================================  ===========================================
hello          0, length                                JSON, source to target, first
welcome        0, length                                JSON, the answer
data           position on the disk, bytes of it        the bytes, maybe compressed
zero           position on the disk, bytes of it        none
digest         position of first block, 16 a block      digests, maybe compressed
end            0, 8                                     checksum of the digest array
acknowledge    0, 16 a connection                       slot, epoch, frames that are durable
claim          position of first block, 16 a block      digests of blocks that the target has already
unknown        position of first block, bytes of it     none; blocks that an earlier attempt left half written
settled        0, 0                                     none; source: nothing more now; target: answers come here now
ask            position of a block, 16 a part           digests of the 64 KiB parts of a block that differs
differ         position of a block, 8                   which of its parts differ in the base: bit 0 is the first
error          0, length                                JSON of code, what, why, todo
=============  =======================================  ===========================================

Hello, data, zero, digest, ask, end and settled go from source to target, the others back, settled too.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from understudy.errors import TransferError
from understudy.model.extent import PART
from understudy.mover.digest import CHUNK, DIGEST_BYTES
from understudy.units import KIB, MIB, block_count

MAGIC = b"UST2"
LARGEST_DATA = 4 * MIB
LARGEST_TEXT = 64 * KIB

_FIELDS = struct.Struct("<4sBBHQQII")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_SUM = struct.Struct("<Q")
_PARTS = struct.Struct("<Q")
_DURABLE = struct.Struct("<IIQ")
MOST_CONNECTIONS = 64
MOST_EPOCHS = 1 << 32


class FrameType(enum.IntEnum):
    """Types of frames; the numbers are the format."""

    HELLO = 1
    WELCOME = 2
    DATA = 3
    ZERO = 4
    DIGEST = 5
    END = 6
    ACKNOWLEDGE = 7
    ERROR = 8
    CLAIM = 9
    UNKNOWN = 10
    SETTLED = 11
    ASK = 12
    DIFFER = 13


#: Types that speak about a range of the disk and carry nothing.
_RANGES = (FrameType.ZERO, FrameType.UNKNOWN)


class Codec(enum.IntEnum):
    """How the payload is compressed; the numbers are the format."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header."""

    type: FrameType
    codec: Codec = Codec.NONE
    offset: int = 0
    raw_length: int = 0
    wire_length: int = 0
    number: int = 0
    checksum: int = 0


@dataclass(frozen=True)
class Geometry:
    """The disk that a connection is about: what a decoder holds frames against."""

    size: int
    block_size: int


NO_DISK = Geometry(0, LARGEST_DATA)


@dataclass(frozen=True, slots=True)
class Durable:
    """On the connection of ``slot``, made for the ``epoch``-th time, all frames below number ``frames`` are durable."""

    slot: int
    epoch: int
    frames: int


def pack_durable(states: Sequence[Durable]) -> bytes:
    """Payload of an acknowledge frame."""
    return b"".join(_DURABLE.pack(state.slot, state.epoch, state.frames) for state in states)


def unpack_durable(payload: bytes | memoryview) -> list[Durable]:
    """What an acknowledge frame says.

    :raises TransferError: if its length is wrong.
    """
    if len(payload) % _DURABLE.size:
        raise _bad("an acknowledge frame of wrong length")
    return [Durable(*fields) for fields in _DURABLE.iter_unpack(payload)]


def pack_sum(checksum: int) -> bytes:
    """Payload of an end frame."""
    return _SUM.pack(checksum)


def unpack_sum(payload: bytes | memoryview) -> int:
    """The checksum in an end frame.

    :raises TransferError: if its length is wrong.
    """
    if len(payload) != _SUM.size:
        raise _bad("an end frame of wrong length")
    return int(_SUM.unpack(payload)[0])


def pack_parts(parts: int) -> bytes:
    """Payload of a differ frame: a set of parts, one bit each."""
    return _PARTS.pack(parts)


def unpack_parts(payload: bytes | memoryview, count: int) -> int:
    """The set in a differ frame about a block of ``count`` parts.

    :raises TransferError: if its length is wrong, or if it names parts that the block does not have.
    """
    if len(payload) != _PARTS.size:
        raise _bad("a differ frame of wrong length")
    parts = int(_PARTS.unpack(payload)[0])
    if parts >> count:
        raise _bad(f"a differ frame with parts that a block of {count} does not have")
    return parts


def pack_header(frame: Frame, raw: bytes | memoryview) -> bytes:
    """The header of ``frame``, with the checksum of ``raw``; the frame's own checksum field is ignored."""
    fields = _fields(frame)
    return fields + _CHECKSUM.pack(_checksum(fields, raw))


def unpack_header(header: bytes | memoryview, geometry: Geometry) -> Frame:
    """A frame from its header, held against all limits; :func:`verify` must follow when the raw bytes are there.

    :raises TransferError: if anything about it is wrong.
    """
    if len(header) != HEADER_BYTES:
        raise _bad("a header of wrong length")
    magic, kind, codec, flags, offset, raw_length, wire_length, number = _FIELDS.unpack_from(header)
    if magic != MAGIC or flags:
        raise _bad("no frame where one must start")
    try:
        frame_type, frame_codec = FrameType(kind), Codec(codec)
    except ValueError as exc:
        raise _bad(str(exc)) from exc
    (checksum,) = _CHECKSUM.unpack_from(header, _FIELDS.size)
    frame = Frame(frame_type, frame_codec, offset, raw_length, wire_length, number, checksum)
    _check_payload(frame, geometry)
    _check_place(frame, geometry)
    return frame


def verify(frame: Frame, raw: bytes | memoryview) -> None:
    """Hold the raw bytes against the checksum.

    :raises TransferError: if they, or the header, are not what was sent.
    """
    length = 0 if frame.type in _RANGES else frame.raw_length
    if len(raw) != length or _checksum(_fields(frame), raw) != frame.checksum:
        raise _bad(f"the checksum of a {frame.type.name.lower()} frame at {frame.offset} does not match")


def _fields(frame: Frame) -> bytes:
    return _FIELDS.pack(
        MAGIC, frame.type, frame.codec, 0, frame.offset, frame.raw_length, frame.wire_length, frame.number
    )


def _checksum(fields: bytes, raw: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(raw, seed=xxhash.xxh3_64_intdigest(fields))


def _check_payload(frame: Frame, geometry: Geometry) -> None:
    """Whether the lengths fit each other and the limits of the type."""
    if frame.type in _RANGES or frame.type is FrameType.SETTLED:
        wrong = frame.wire_length != 0 or frame.codec is not Codec.NONE
    elif frame.codec is Codec.NONE:
        wrong = frame.wire_length != frame.raw_length
    else:
        # A block that does not shrink is sent raw: a compressed payload is always shorter.
        wrong = not 0 < frame.wire_length < frame.raw_length
        wrong = wrong or frame.type not in (FrameType.DATA, FrameType.DIGEST, FrameType.CLAIM)
    if wrong or frame.raw_length > _largest(frame.type, geometry):
        name = frame.type.name.lower()
        raise _bad(f"a {name} frame of {frame.raw_length} bytes, {frame.wire_length} on the wire")


def _largest(frame_type: FrameType, geometry: Geometry) -> int:
    match frame_type:
        case FrameType.DATA:
            return min(geometry.block_size, LARGEST_DATA)
        case FrameType.DIGEST | FrameType.CLAIM:
            return CHUNK
        case FrameType.ZERO | FrameType.UNKNOWN:
            return 1 << 63
        case FrameType.ASK:
            return DIGEST_BYTES * (LARGEST_DATA // PART)
        case FrameType.DIFFER:
            return _PARTS.size
        case FrameType.END:
            return _SUM.size
        case FrameType.ACKNOWLEDGE:
            return _DURABLE.size * MOST_CONNECTIONS
        case FrameType.SETTLED:
            return 0
        case _:
            return LARGEST_TEXT


def _check_place(frame: Frame, geometry: Geometry) -> None:
    """Whether a frame about the disk lies in the disk and is aligned."""
    if frame.type in (FrameType.DATA, FrameType.ZERO):
        wrong = not _covers(frame, geometry, PART)
    elif frame.type is FrameType.UNKNOWN:
        wrong = not _covers(frame, geometry, geometry.block_size)
    elif frame.type in (FrameType.DIGEST, FrameType.CLAIM):
        first, count = frame.offset // geometry.block_size, frame.raw_length // DIGEST_BYTES
        aligned = frame.offset % geometry.block_size == 0 and frame.raw_length % DIGEST_BYTES == 0
        wrong = not aligned or count == 0 or first + count > block_count(geometry.size, geometry.block_size)
    elif frame.type in (FrameType.ASK, FrameType.DIFFER):
        parts = block_count(min(geometry.block_size, geometry.size - frame.offset), PART)
        length = DIGEST_BYTES * parts if frame.type is FrameType.ASK else _PARTS.size
        wrong = frame.offset % geometry.block_size != 0 or parts <= 0 or frame.raw_length != length
    else:
        wrong = frame.offset != 0
    if wrong:
        name = frame.type.name.lower()
        raise _bad(f"a {name} frame of {frame.raw_length} bytes at {frame.offset}, disk of {geometry.size} bytes")


def _covers(frame: Frame, geometry: Geometry, unit: int) -> bool:
    """Whether the frame's range is not empty, inside the disk, and of whole units but for the disk's end."""
    end = frame.offset + frame.raw_length
    aligned = frame.offset % unit == 0 and (end % unit == 0 or end == geometry.size)
    return aligned and frame.raw_length > 0 and end <= geometry.size


def _bad(why: str) -> TransferError:
    return TransferError("decode the transfer stream", why)
