"""Reading some pieces of a disk, spread over it, to learn whether it can be read and how fast."""

from __future__ import annotations

import time

from understudy.model.extent import Extent
from understudy.mover.api import ReadSample, SampleRead
from understudy.nbd import NbdClient
from understudy.units import KIB, MIB

PIECE = MIB
# The disk library reads whole sectors only; file systems begin their own structures at such places, too.
_ALIGNMENT = 64 * KIB


def sample(request: ReadSample) -> SampleRead:
    """Read what is wanted.

    :raises TransferError: if it cannot be read.
    """
    with NbdClient(request.source.address or request.source.socket, request.source.export) as client:
        started = time.monotonic()
        read = zero = 0
        for piece in pieces(client.size, request.length):
            buffer = bytearray(piece.length)
            client.read(memoryview(buffer), piece.start)
            read += piece.length
            zero += piece.length if not any(buffer) else 0
        return SampleRead(client.size, read, zero, time.monotonic() - started)


def pieces(size: int, length: int) -> tuple[Extent, ...]:
    """The pieces to read: the whole disk if it is short, else its beginning and others at equal distances."""
    if length >= size:
        return tuple(Extent(start, min(PIECE, size - start)) for start in range(0, size, PIECE))
    count = max(1, length // PIECE)
    step = size // count // _ALIGNMENT * _ALIGNMENT
    return tuple(Extent(number * step, min(PIECE, size - number * step)) for number in range(count))
