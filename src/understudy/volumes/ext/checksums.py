"""Checksums: sums that ext4 and jbd2 keep of their blocks, as the kernel has them, not inverted at the end. Pure."""

from __future__ import annotations

import zlib

import google_crc32c

#: What every sum starts from.
START = 0xFFFFFFFF

_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32c(state: int, data: bytes) -> int:
    """The Castagnoli sum of ``data``, going on from ``state``."""
    return ~int(google_crc32c.extend(~state & START, bytes(data))) & START


def crc32_be(state: int, data: bytes) -> int:
    """The sum of old journals: that of zlib with the bits of each byte the other way round."""
    return _mirrored(~zlib.crc32(data.translate(_MIRROR), ~_mirrored(state) & START) & START)


def _mirrored(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "big").translate(_MIRROR), "little")


def _crc16_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return table


_CRC16 = _crc16_table()


def crc16(state: int, data: bytes) -> int:
    """The sum of group descriptors before metadata_csum."""
    for byte in data:
        state = state >> 8 ^ _CRC16[(state ^ byte) & 0xFF]
    return state
