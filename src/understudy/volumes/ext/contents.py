"""Contents: the bytes of a file, by where its data lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from understudy.units import MIB
from understudy.volumes import Image, Unfit
from understudy.volumes.ext.maps import Run

_PIECE = MIB


def read_start(image: Image, runs: Sequence[Run], block_size: int, length: int) -> bytes:
    """The first ``length`` bytes of a file; holes and what was never written are zeros.

    :raises Unfit: if its data lies outside of the volume.
    """
    content = bytearray(length)
    for run in runs:
        start = run.logical * block_size
        if start >= length:
            break
        if run.written:
            wanted = min(run.blocks * block_size, length - start)
            content[start : start + wanted] = image.read(run.block * block_size, wanted)
    return bytes(content)


def read_blocks(image: Image, runs: Sequence[Run], block_size: int, count: int) -> Iterator[bytes]:
    """The blocks of a directory that are there, up to its block ``count``, read in large pieces.

    :raises Unfit: if one was never written, or lies outside of the volume.
    """
    for run in runs:
        if not run.written:
            raise Unfit("a directory has blocks that were never written")
        rest = min(run.blocks, count - run.logical)
        place = run.block
        while rest > 0:
            blocks = min(rest, _PIECE // block_size)
            piece = image.read(place * block_size, blocks * block_size)
            for offset in range(0, len(piece), block_size):
                yield piece[offset : offset + block_size]
            place, rest = place + blocks, rest - blocks
