"""Sampling: does changed block tracking tell the truth? Some blocks that it calls unchanged, against digests (S4).

Before an incremental copies anything, blocks chosen at random are compared with the digests of the base point. What
they cost is bounded by their number and by time; the bytes do not count as read for the transfer.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from understudy.context import Context
from understudy.errors import CbtMismatch
from understudy.model.extent import Extent, clip, having
from understudy.mover.api import ReadSpec
from understudy.mover.base import BaseDigests
from understudy.mover.digest import DIGEST_BYTES, ZERO_DIGEST, DigestReader
from understudy.mover.filters import content_digest
from understudy.mover.meter import Counters, Meter
from understudy.mover.reader import DiskSource
from understudy.nbd import DIRTY_FLAG

#: One block in so many is compared.
SHARE = 1000
LEAST = 16
MOST_S = 2.0
#: So many times more are drawn, for those that changed do not count.
OVERDRAW = 4

#: Gives the offset and bytes of the chunks of a digest array that are not all zero; may be called again.
Chunks = Callable[[], Iterable[tuple[int, bytes]]]


def sample_size(blocks: int) -> int:
    """How many of ``blocks`` blocks are compared, if time allows."""
    return min(blocks, max(LEAST, -(-blocks // SHARE)))


def draw_blocks(blocks: int, chunks: Chunks, rng: random.Random) -> list[int]:
    """Blocks to be compared, each one once, in random order, so that a time limit favours no part of the disk.

    About half are drawn from the blocks whose digest is not zero, as far as there are so many: most of a sparse disk
    tells nothing.

    :param blocks: of the disk.
    :param chunks: of its digests.
    """
    wanted = min(blocks, OVERDRAW * sample_size(blocks))
    drawn = dict.fromkeys(_draw_data(chunks, wanted // 2, rng))
    for index in rng.sample(range(blocks), wanted):
        if len(drawn) == wanted:
            break
        drawn[index] = None
    order = list(drawn)
    rng.shuffle(order)
    return order


def _draw_data(chunks: Chunks, most: int, rng: random.Random) -> list[int]:
    """Up to ``most`` blocks with data, each equally likely. They are counted first, so that memory stays small."""
    counts = [len(_data_in(chunk)) for _, chunk in chunks()]
    everything = sum(counts)
    ordinals = sorted(rng.sample(range(everything), min(most, everything)), reverse=True)
    found: list[int] = []
    passed = 0
    for count, (offset, chunk) in zip(counts, chunks(), strict=True):
        if ordinals and ordinals[-1] < passed + count:
            data = _data_in(chunk)
            while ordinals and ordinals[-1] < passed + count:
                found.append(offset // DIGEST_BYTES + data[ordinals.pop() - passed])
        passed += count
    return found


def _data_in(chunk: bytes) -> Sequence[int]:
    """Positions of the digests in ``chunk`` that are not zero."""
    if ZERO_DIGEST not in chunk:
        return range(len(chunk) // DIGEST_BYTES)
    # The first half of a digest is zero for a block of zeros, and for no other that will ever be met.
    halves = struct.unpack(f"<{len(chunk) // 8}Q", chunk)[::2]
    return [position for position, half in enumerate(halves) if half]


def check_sample(
    ctx: Context, source: DiskSource, read: ReadSpec, base: DigestReader, content: BaseDigests, meter: Meter
) -> None:
    """Compare blocks that tracking calls unchanged with the base point; writes nothing, and counts what it compared.

    :param base: digests of the base point.
    :param content: says which blocks are doubtful: they are left out, their digests prove nothing of tracking.
    :raises CbtMismatch: if a block changed.
    :raises TransferError: if reading fails.
    """
    blocks, counters = base.header.blocks, meter.counters()
    order = draw_blocks(blocks, lambda: base.chunks(blocks * DIGEST_BYTES), random.Random(os.urandom(16)))
    view = memoryview(bytearray(read.block_size))
    deadline = time.monotonic() + MOST_S
    for index in order:
        if counters.checked == sample_size(blocks) or time.monotonic() >= deadline:
            break
        ctx.check()
        start = index * read.block_size
        block = Extent(start, min(read.block_size, read.size - start))
        digest = None if content.doubtful(block) else _digest_if_clean(source, read, block, view, counters)
        if digest is not None:
            counters.checked += 1
            counters.mismatched += digest != base.read(index, 1)
    if counters.mismatched:
        why = f"{counters.mismatched} of {counters.checked} blocks that tracking calls unchanged have changed"
        raise CbtMismatch(f"read disk {read.disk!r}", why, "use a digest scan")


def _digest_if_clean(
    source: DiskSource, read: ReadSpec, block: Extent, view: memoryview, counters: Counters
) -> bytes | None:
    """The digest of a block, None if tracking says that something in it changed."""
    client = source.planner
    started = time.monotonic()
    _, statuses = client.statuses(block.start, block.length, block.length)
    if clip(having(statuses[read.source.dirty_context], DIRTY_FLAG), block.start, block.end):
        return None
    view = view[: block.length]
    client.read(view, block.start)
    counters.source += time.monotonic() - started
    return content_digest(view)
