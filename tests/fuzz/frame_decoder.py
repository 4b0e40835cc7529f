"""Fuzz target: any bytes as a frame from the wire. Only :class:`TransferError` may come out, or the frame.

By hand: ``python -m tests.fuzz.frame_decoder corpus/``; the options are those of libFuzzer (``-runs=N``, ``-seed=N``).
"""

from __future__ import annotations

import struct
import sys

import atheris  # type: ignore[import-untyped]  # it has no stubs

with atheris.instrument_imports(include=["understudy.mover"]):
    from understudy.errors import TransferError
    from understudy.mover import frames
    from understudy.mover.codecs import Decoder
    from understudy.units import KIB, MIB

import xxhash

DISK = frames.Geometry(5 * MIB + 512, 256 * KIB)
DECODER = Decoder()


def one_frame(data: bytes) -> None:
    """What a connection does with a frame, with and without the right checksum of its header."""
    geometry = DISK if data[:1] < b"\x80" else frames.NO_DISK
    for repaired in (False, True):
        header = bytearray(data[1 : 1 + frames.HEADER_BYTES])
        if repaired and len(header) == frames.HEADER_BYTES:
            header[:4] = frames.MAGIC
            header[6:8] = b"\0\0"
        try:
            frame = frames.unpack_header(bytes(header), geometry)
        except TransferError:
            continue
        assert frame.wire_length <= max(frames.LARGEST_TEXT, geometry.block_size)
        payload = data[1 + frames.HEADER_BYTES :][: frame.wire_length]
        if repaired:
            payload = payload.ljust(frame.wire_length, b"\0")
        _decode(frame, header, payload, geometry if repaired else None)


def _decode(frame: frames.Frame, header: bytearray, payload: bytes, geometry: frames.Geometry | None) -> None:
    try:
        raw = bytes(DECODER.decode(frame, memoryview(payload)))
    except TransferError:
        return
    assert frame.codec is frames.Codec.NONE or len(raw) == frame.raw_length
    if geometry is not None:
        seed = xxhash.xxh3_64_intdigest(bytes(header[:32]))
        header[32:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(raw, seed))
        frame = frames.unpack_header(bytes(header), geometry)
    try:
        frames.verify(frame, raw)
    except TransferError:
        assert geometry is None, "it has the right checksum"
        return
    _payloads(frame, raw)


def _parts(raw: bytes) -> None:
    assert 0 <= frames.unpack_parts(raw, 4) < 1 << 4


def _payloads(frame: frames.Frame, raw: bytes) -> None:
    for unpack in (frames.unpack_durable, frames.unpack_sum, _parts):
        try:
            unpack(raw)
        except TransferError:
            continue
    assert len(raw) in (0, frame.raw_length)


def main() -> None:
    """Run until something is found, or as the options say."""
    atheris.Setup(sys.argv, one_frame)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
