"""Codecs of the wire: none, lz4, zstd. Encoders and decoders keep state: one for each thread."""

from __future__ import annotations

import lz4.block
import zstandard

from understudy.errors import TransferError
from understudy.model.job import Compression
from understudy.mover.frames import Codec, Frame

ZSTD_LEVELS = {Compression.ZSTD: 1, Compression.ZSTD_HIGH: 9}


class Encoder:
    """Compresses payloads as the job wants."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        level = ZSTD_LEVELS.get(compression)
        self._zstd = zstandard.ZstdCompressor(level=level) if level is not None else None

    def encode(self, raw: bytes | memoryview) -> tuple[Codec, bytes | memoryview]:
        """``raw`` compressed; ``raw`` itself when that would not be shorter."""
        if self._zstd is not None:
            codec, wire = Codec.ZSTD, self._zstd.compress(raw)
        elif self._compression is Compression.LZ4:
            codec, wire = Codec.LZ4, lz4.block.compress(raw, store_size=False)
        else:
            return Codec.NONE, raw
        return (codec, wire) if len(wire) < len(raw) else (Codec.NONE, raw)


class Decoder:
    """Decompresses payloads; never makes more bytes than the frame announced."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decode(self, frame: Frame, wire: memoryview) -> bytes | memoryview:
        """The raw bytes of a payload.

        :raises TransferError: if it cannot be decompressed to exactly the announced length.
        """
        if frame.codec is Codec.NONE:
            return wire
        try:
            raw = self._decompress(frame, wire)
        except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as exc:
            raise TransferError(f"decompress a frame at {frame.offset}", str(exc)) from exc
        if len(raw) != frame.raw_length:
            raise TransferError(f"decompress a frame at {frame.offset}", f"{len(raw)} bytes, not {frame.raw_length}")
        return raw

    def _decompress(self, frame: Frame, wire: memoryview) -> bytes:
        if frame.codec is Codec.LZ4:
            return bytes(lz4.block.decompress(wire, uncompressed_size=frame.raw_length))
        # decompress() makes room for whatever the zstd frame claims: ask first.
        claimed = zstandard.get_frame_parameters(wire).content_size
        if claimed != frame.raw_length:
            raise ValueError(f"it claims {claimed} bytes, not {frame.raw_length}")
        return self._zstd.decompress(wire, max_output_size=frame.raw_length)
