"""Frames: whatever is packed comes back; whatever was damaged is refused, and only in one way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.unit.mover.wire_lab import HEADER
from understudy.errors import TransferError
from understudy.model.job import Compression
from understudy.mover.codecs import Decoder, Encoder
from understudy.mover.frames import (
    HEADER_BYTES,
    LARGEST_DATA,
    LARGEST_TEXT,
    MOST_CONNECTIONS,
    NO_DISK,
    Codec,
    Durable,
    Frame,
    FrameType,
    Geometry,
    pack_durable,
    pack_header,
    pack_parts,
    pack_sum,
    unpack_durable,
    unpack_header,
    unpack_parts,
    unpack_sum,
    verify,
)
from understudy.units import KIB, MIB

PARTS = (64 * KIB).__mul__
DISK = Geometry(10 * MIB + 512, MIB)


def whole(frame: Frame, raw: bytes, wire: bytes) -> bytes:
    """A frame as it is on the wire."""
    return pack_header(frame, raw) + wire


def accept(stream: bytes, geometry: Geometry = DISK) -> tuple[Frame, bytes]:
    """What a receiver does with one frame."""
    frame = unpack_header(stream[:HEADER_BYTES], geometry)
    wire = stream[HEADER_BYTES : HEADER_BYTES + frame.wire_length]
    raw = bytes(Decoder().decode(frame, memoryview(wire)))
    verify(frame, raw)
    return frame, raw


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("content", [b"\1" * MIB, bytes(range(256)) * 256, b"x" * 512])
def test_data_comes_back(compression: Compression, content: bytes) -> None:
    offset = 10 * MIB if len(content) == 512 else MIB
    codec, wire = Encoder(compression).encode(content)
    frame = Frame(FrameType.DATA, codec, offset, len(content), len(wire))
    found, raw = accept(whole(frame, content, bytes(wire)))
    assert (found.type, found.offset, raw) == (FrameType.DATA, offset, content)


def test_what_does_not_shrink_is_sent_raw() -> None:
    import random

    noise = random.Random(1).randbytes(64 * KIB)
    for compression in Compression:
        codec, wire = Encoder(compression).encode(noise)
        assert (codec, wire) == (Codec.NONE, noise)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.DATA, Codec.NONE, 4096, 64 * KIB, 64 * KIB),  # not at a 64 KiB border
        Frame(FrameType.DATA, Codec.NONE, 0, 4096, 4096),  # ends between borders
        Frame(FrameType.DATA, Codec.NONE, 10 * MIB, 64 * KIB, 64 * KIB),  # beyond the disk
        Frame(FrameType.DATA, Codec.NONE, 0, 0, 0),
        Frame(FrameType.DATA, Codec.NONE, 0, 8 * MIB, 8 * MIB),  # too long
        Frame(FrameType.DATA, Codec.NONE, 0, 128 * KIB, 64 * KIB),  # lengths differ
        Frame(FrameType.DATA, Codec.ZSTD, 0, 64 * KIB, 64 * KIB),  # compressed, not shorter
        Frame(FrameType.DATA, Codec.ZSTD, 0, 64 * KIB, 0),
        Frame(FrameType.ZERO, Codec.NONE, 0, 11 * MIB, 0),
        Frame(FrameType.ZERO, Codec.NONE, 0, 64 * KIB, 5),
        Frame(FrameType.ZERO, Codec.NONE, 1 << 63, 64 * KIB, 0),
        Frame(FrameType.DIGEST, Codec.NONE, 512 * KIB, 16, 16),  # not at a block border
        Frame(FrameType.DIGEST, Codec.NONE, 0, 15, 15),
        Frame(FrameType.DIGEST, Codec.NONE, 10 * MIB, 32, 32),  # the disk has 11 blocks
        Frame(FrameType.END, Codec.NONE, 0, 9, 9),
        Frame(FrameType.HELLO, Codec.ZSTD, 0, 100, 50),
        Frame(FrameType.ERROR, Codec.NONE, 0, 65 * KIB, 65 * KIB),
        Frame(FrameType.ACKNOWLEDGE, Codec.NONE, 1, 0, 0),
        Frame(FrameType.ACKNOWLEDGE, Codec.NONE, 0, 16 * MOST_CONNECTIONS + 16, 16 * MOST_CONNECTIONS + 16),
        Frame(FrameType.CLAIM, Codec.NONE, 512 * KIB, 16, 16),
        Frame(FrameType.CLAIM, Codec.NONE, 10 * MIB, 32, 32),
        Frame(FrameType.CLAIM, Codec.NONE, 0, 0, 0),
        Frame(FrameType.UNKNOWN, Codec.NONE, 64 * KIB, MIB, 0),  # not whole blocks
        Frame(FrameType.UNKNOWN, Codec.NONE, 10 * MIB, MIB, 0),
        Frame(FrameType.UNKNOWN, Codec.NONE, 0, MIB, 5),
        Frame(FrameType.SETTLED, Codec.NONE, 0, 1, 0),
        Frame(FrameType.SETTLED, Codec.NONE, 0, 0, 1),
        Frame(FrameType.ASK, Codec.NONE, MIB, 240, 240),  # a block has 16 parts
        Frame(FrameType.ASK, Codec.NONE, MIB, 272, 272),
        Frame(FrameType.ASK, Codec.NONE, MIB, 0, 0),
        Frame(FrameType.ASK, Codec.NONE, 64 * KIB, 256, 256),  # not a block
        Frame(FrameType.ASK, Codec.NONE, 10 * MIB, 256, 256),  # the last block has one part
        Frame(FrameType.ASK, Codec.NONE, 11 * MIB, 16, 16),
        Frame(FrameType.ASK, Codec.NONE, 1 << 63, 256, 256),
        Frame(FrameType.ASK, Codec.ZSTD, MIB, 256, 100),
        Frame(FrameType.DIFFER, Codec.NONE, MIB, 4, 4),
        Frame(FrameType.DIFFER, Codec.NONE, MIB, 16, 16),
        Frame(FrameType.DIFFER, Codec.NONE, 64 * KIB, 8, 8),
        Frame(FrameType.DIFFER, Codec.NONE, 11 * MIB, 8, 8),
        Frame(FrameType.DIFFER, Codec.ZSTD, MIB, 8, 7),
    ],
)
def test_frames_beyond_the_limits_are_refused(frame: Frame) -> None:
    with pytest.raises(TransferError):
        unpack_header(pack_header(frame, b""), DISK)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES + 64))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(TransferError):
        accept(noise)


@given(st.integers(0, HEADER_BYTES + 64 * KIB - 1), st.integers(1, 255), st.sampled_from(list(Compression)))
@example(8, 1, Compression.NONE)
def test_one_changed_byte_is_refused(position: int, change: int, compression: Compression) -> None:
    content = bytes(range(256)) * 256
    codec, wire = Encoder(compression).encode(content)
    stream = bytearray(whole(Frame(FrameType.DATA, codec, MIB, len(content), len(wire)), content, bytes(wire)))
    assume(position < len(stream))
    stream[position] ^= change
    try:
        _, raw = accept(bytes(stream))
    except TransferError:
        return
    # A compressed stream may have bits without meaning: then the bytes must still be the right ones.
    assert codec is not Codec.NONE
    assert position >= HEADER_BYTES
    assert raw == content


def test_a_bomb_makes_no_bytes() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(256 * MIB))
    frame = Frame(FrameType.DATA, Codec.ZSTD, 0, MIB, len(bomb))
    with pytest.raises(TransferError, match="claims"):
        Decoder().decode(frame, memoryview(bomb))


def test_payloads_come_back() -> None:
    states = [Durable(0, 1, 2), Durable(63, (1 << 32) - 1, 1 << 63)]
    assert unpack_durable(pack_durable(states)) == states
    assert unpack_sum(pack_sum(1 << 63)) == 1 << 63
    for parts in (0, 1, 1 << 63, (1 << 64) - 1):
        assert unpack_parts(pack_parts(parts), 64) == parts
    for unpack in (unpack_durable, unpack_sum, lambda payload: unpack_parts(payload, 64)):
        with pytest.raises(TransferError):
            unpack(b"short")
    with pytest.raises(TransferError, match="a block of 4 does not have"):
        unpack_parts(pack_parts(1 << 4), 4)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.ASK, Codec.NONE, MIB, 256, 256),
        Frame(FrameType.ASK, Codec.NONE, 10 * MIB, 16, 16),
        Frame(FrameType.DIFFER, Codec.NONE, 10 * MIB, 8, 8),
    ],
)
def test_questions_and_answers_about_blocks_of_the_disk_pass(frame: Frame) -> None:
    raw = bytes(frame.raw_length)
    assert accept(whole(frame, raw, raw))[1] == raw


def test_a_header_is_checked_with_the_bytes() -> None:
    frame = Frame(FrameType.ZERO, Codec.NONE, MIB, MIB)
    header = bytearray(pack_header(frame, b""))
    header[8:16] = (2 * MIB).to_bytes(8, "little")
    with pytest.raises(TransferError, match="checksum"):
        verify(unpack_header(bytes(header), DISK), b"")


def test_every_number_is_part_of_the_checksum() -> None:
    one, other = (pack_header(Frame(FrameType.SETTLED, number=number), b"") for number in (1, 2))
    assert one[32:] != other[32:]


HEADERS = st.builds(
    lambda kind, codec, offset, raw, wire, number, total: HEADER.pack(b"UST2", kind, codec, 0, offset, raw, wire,
                                                                      number, total),
    st.integers(0, 14), st.integers(0, 3), st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 200).map(PARTS)),
    st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 200).map(PARTS), st.integers(0, 70_000)),
    st.one_of(st.integers(0, (1 << 32) - 1), st.integers(0, 70_000)), st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=1000)
@given(HEADERS, st.sampled_from([DISK, NO_DISK, Geometry(1 << 46, 4 * MIB)]), st.binary(max_size=300))
def test_any_header_is_refused_or_within_the_limits(header: bytes, geometry: Geometry, wire: bytes) -> None:
    """Nobody makes us take more memory than a block, or touch what is not on the disk."""
    try:
        frame = unpack_header(header, geometry)
    except TransferError:
        return
    assert frame.wire_length <= max(LARGEST_TEXT, min(geometry.block_size, LARGEST_DATA))
    if frame.type not in (FrameType.ZERO, FrameType.UNKNOWN):
        assert frame.raw_length <= max(LARGEST_TEXT, min(geometry.block_size, LARGEST_DATA))
    if frame.type in (FrameType.DATA, FrameType.ZERO, FrameType.UNKNOWN, FrameType.ASK):
        assert 0 < frame.offset + frame.raw_length <= geometry.size
    payload = memoryview(wire)[: frame.wire_length]
    try:
        raw = Decoder().decode(frame, payload)
        assert len(raw) <= frame.raw_length
        verify(frame, raw)
    except TransferError:
        return


@settings(max_examples=300)
@given(st.binary(max_size=2000), st.sampled_from([Codec.LZ4, Codec.ZSTD]), st.integers(0, 2 * MIB))
def test_any_payload_is_refused_or_of_the_length_that_was_announced(wire: bytes, codec: Codec, length: int) -> None:
    try:
        raw = Decoder().decode(Frame(FrameType.DATA, codec, 0, length, len(wire)), memoryview(wire))
    except TransferError:
        return
    assert len(raw) == length


def test_a_short_run_of_the_fuzz_target_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: python -m pip install atheris")
    command = [sys.executable, "-m", "tests.fuzz.frame_decoder", "-seed=1", "-runs=20000", "-max_len=400",
               f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 20000 runs" in done.stderr
