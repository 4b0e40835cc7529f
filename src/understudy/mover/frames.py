"""Frames: what two movers say to each other on a transfer connection, byte for byte. A strict decoder, no I/O.

Header, 40 bytes little endian: magic ``UST1``, type (u8), codec (u8), flags (u16, 0), offset (u64), raw length (u64),
wire length (u32), reserved (u32, 0), checksum (u64); then wire length bytes. The checksum is the XXH3-64 of the raw
bytes, seeded with the XXH3-64 of the header before it, so that a wrong offset or length is found as a wrong byte is.

=============  =======================================  ===========================================
type           offset, raw length                       payload
=============  =======================================  ===========================================
hello          0, length                                JSON, source to target, first
welcome        0, length                                JSON, the answer
data           position on the disk, bytes of it        the bytes, maybe compressed
zero           position on the disk, bytes of it        none
digest         position of first block, 16 a block      digests, maybe compressed
end            0, 40                                    totals of what was sent, see :class:`Totals`
acknowledge    0, 0                                     none; everything is durable
error          0, length                                JSON of code, what, why, todo
=============  =======================================  ===========================================
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import xxhash

from understudy.errors import TransferError
from understudy.model.extent import PART
from understudy.mover.digest import CHUNK, DIGEST_BYTES
from understudy.units import KIB, MIB, block_count

MAGIC = b"UST1"
LARGEST_DATA = 4 * MIB
LARGEST_TEXT = 64 * KIB

_FIELDS = struct.Struct("<4sBBHQQII")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_TOTALS = struct.Struct("<QQQQQ")


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
    checksum: int = 0


@dataclass(frozen=True)
class Geometry:
    """The disk that a connection is about: what a decoder holds frames against."""

    size: int
    block_size: int


@dataclass
class Totals:
    """What was sent, or received: compared at the end.

    :ivar checksum: of the digest array.
    """

    frames: int = 0
    data: int = 0
    zero: int = 0
    digests: int = 0
    checksum: int = 0

    def count(self, frame: Frame) -> None:
        """Add a data, zero or digest frame."""
        self.frames += 1
        if frame.type is FrameType.DATA:
            self.data += frame.raw_length
        elif frame.type is FrameType.ZERO:
            self.zero += frame.raw_length
        else:
            self.digests += frame.raw_length

    def pack(self) -> bytes:
        """Payload of an end frame."""
        return _TOTALS.pack(self.frames, self.data, self.zero, self.digests, self.checksum)

    @classmethod
    def unpack(cls, payload: bytes | memoryview) -> Totals:
        """Totals from the payload of an end frame.

        :raises TransferError: if it has another length.
        """
        if len(payload) != _TOTALS.size:
            raise _bad("an end frame of wrong length")
        return cls(*_TOTALS.unpack(payload))


def pack_header(frame: Frame, raw: bytes | memoryview) -> bytes:
    """The header of ``frame``, with the checksum of ``raw``; the frame's own checksum field is ignored."""
    fields = _FIELDS.pack(
        MAGIC, frame.type, frame.codec, 0, frame.offset, frame.raw_length, frame.wire_length, 0
    )
    return fields + _CHECKSUM.pack(_checksum(fields, raw))


def unpack_header(header: bytes | memoryview, geometry: Geometry) -> Frame:
    """A frame from its header, held against all limits; :func:`verify` must follow when the raw bytes are there.

    :raises TransferError: if anything about it is wrong.
    """
    if len(header) != HEADER_BYTES:
        raise _bad("a header of wrong length")
    magic, kind, codec, flags, offset, raw_length, wire_length, reserved = _FIELDS.unpack_from(header)
    if magic != MAGIC or flags or reserved:
        raise _bad("no frame where one must start")
    try:
        frame_type, frame_codec = FrameType(kind), Codec(codec)
    except ValueError as exc:
        raise _bad(str(exc)) from exc
    (checksum,) = _CHECKSUM.unpack_from(header, _FIELDS.size)
    frame = Frame(frame_type, frame_codec, offset, raw_length, wire_length, checksum)
    _check_payload(frame)
    _check_place(frame, geometry)
    return frame


def verify(frame: Frame, raw: bytes | memoryview) -> None:
    """Hold the raw bytes against the checksum.

    :raises TransferError: if they, or the header, are not what was sent.
    """
    length = 0 if frame.type is FrameType.ZERO else frame.raw_length
    fields = _FIELDS.pack(MAGIC, frame.type, frame.codec, 0, frame.offset, frame.raw_length, frame.wire_length, 0)
    if len(raw) != length or _checksum(fields, raw) != frame.checksum:
        raise _bad(f"the checksum of a {frame.type.name.lower()} frame at {frame.offset} does not match")


def _checksum(fields: bytes, raw: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(raw, seed=xxhash.xxh3_64_intdigest(fields))


def _check_payload(frame: Frame) -> None:
    """Whether the lengths fit each other and the limits of the type."""
    if frame.type is FrameType.ZERO or frame.type is FrameType.ACKNOWLEDGE:
        wrong = frame.wire_length != 0 or frame.codec is not Codec.NONE
    elif frame.codec is Codec.NONE:
        wrong = frame.wire_length != frame.raw_length
    else:
        # A block that does not shrink is sent raw: a compressed payload is always shorter.
        wrong = not 0 < frame.wire_length < frame.raw_length
        wrong = wrong or frame.type not in (FrameType.DATA, FrameType.DIGEST)
    if wrong or frame.raw_length > _largest(frame.type):
        name = frame.type.name.lower()
        raise _bad(f"a {name} frame of {frame.raw_length} bytes, {frame.wire_length} on the wire")


def _largest(frame_type: FrameType) -> int:
    match frame_type:
        case FrameType.DATA:
            return LARGEST_DATA
        case FrameType.DIGEST:
            return CHUNK
        case FrameType.ZERO:
            return 1 << 63
        case FrameType.END:
            return _TOTALS.size
        case FrameType.ACKNOWLEDGE:
            return 0
        case _:
            return LARGEST_TEXT


def _check_place(frame: Frame, geometry: Geometry) -> None:
    """Whether a frame about the disk lies in the disk and is aligned."""
    if frame.type in (FrameType.DATA, FrameType.ZERO):
        end = frame.offset + frame.raw_length
        aligned = frame.offset % PART == 0 and (end % PART == 0 or end == geometry.size)
        wrong = not aligned or frame.raw_length == 0 or end > geometry.size
    elif frame.type is FrameType.DIGEST:
        first, count = frame.offset // geometry.block_size, frame.raw_length // DIGEST_BYTES
        aligned = frame.offset % geometry.block_size == 0 and frame.raw_length % DIGEST_BYTES == 0
        wrong = not aligned or count == 0 or first + count > block_count(geometry.size, geometry.block_size)
    else:
        wrong = frame.offset != 0
    if wrong:
        name = frame.type.name.lower()
        raise _bad(f"a {name} frame of {frame.raw_length} bytes at {frame.offset}, disk of {geometry.size} bytes")


def _bad(why: str) -> TransferError:
    return TransferError("decode the transfer stream", why)
