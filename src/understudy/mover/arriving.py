"""Arriving disk: what the target has of one disk of a draft, while it comes: the layer, its digests, what is complete.

A block is complete when its content and its digest are there. :meth:`ArrivingDisk.checkpoint` makes what is complete
durable, in this order: digests, layer, record. After a crash the blocks that were on record are claimed (see
:mod:`understudy.mover.claims`); all others that the layer has are unknown.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.context import Context
from understudy.errors import ReplicaError, UnderstudyError
from understudy.model.extent import Extent, merge
from understudy.mover.base import BaseDigests
from understudy.mover.blocks import BlockSet
from understudy.mover.claims import Claims
from understudy.mover.digest import (
    CHUNK,
    DIGEST_BYTES,
    DigestHeader,
    DigestReader,
    DigestWriter,
    UnfinishedDigests,
)
from understudy.storage import Buffer, LayerWriter
from understudy.storage.values import KeptLayer
from understudy.units import block_count

CHECKPOINT_S = 1.0
_STEP = CHUNK // DIGEST_BYTES


@dataclass(frozen=True)
class Arrival:
    """Which disk comes, and where it goes.

    :ivar digest_path: where the new point's digest file is written.
    :ivar kept: what the layer has already.
    """

    disk: str
    point: str
    size: int
    block_size: int
    layer: LayerWriter
    digest_path: Path
    kept: KeptLayer

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return block_count(self.size, self.block_size)


class ArrivingDisk:
    """One disk of a draft in the making; usable by several threads.

    :param arrival: its layer stays open until the draft ends.
    """

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._block_size = arrival.block_size
        self._lock = threading.Lock()
        self._touched = BlockSet(arrival.blocks)
        self._complete = BlockSet(arrival.blocks)
        self._former = BlockSet(arrival.blocks)  # complete by word of an earlier session's attempt, not yet confirmed
        self._former_digests: UnfinishedDigests | None = None
        self._digests: DigestWriter | None = None
        self._shared = False
        self._new: list[Extent] = []
        self._begin_from(arrival.kept)

    def _begin_from(self, kept: KeptLayer) -> None:
        for extent in kept.touched:
            first, end = extent.start // self._block_size, block_count(extent.end, self._block_size)
            self._touched.add(first, end - first)
        if kept.digests is None:
            return
        complete = self._complete if kept.digests == self._arrival.digest_path else self._former
        for extent in kept.complete:
            # Whole blocks only: a digest says nothing of a part.
            first = block_count(extent.start, self._block_size)
            last = extent.end == self._arrival.size
            end = self._arrival.blocks if last else extent.end // self._block_size
            complete.add(first, max(0, end - first))
        if complete is self._former:
            try:
                self._former_digests = UnfinishedDigests(kept.digests, self._arrival.size, self._block_size)
            except ReplicaError:
                # Without digests nothing can be claimed: every block that the layer has comes again.
                self._former.discard(0, self._arrival.blocks)

    def begin(self, base: DigestReader | None) -> bool:
        """Have a digest file, made from ``base`` if it is new; whether the file began from base digests.

        :raises DatastoreError: if it cannot be written.
        """
        with self._lock:
            if self._digests is None:
                arrival = self._arrival
                header = DigestHeader(arrival.point, arrival.size, arrival.block_size)
                resumed = arrival.kept.digests == arrival.digest_path
                self._digests = DigestWriter(arrival.digest_path, header, base, keep=resumed)
                self._shared = base is not None
            return self._shared

    @property
    def complete_blocks(self) -> int:
        """How many blocks came and are complete."""
        with self._lock:
            return len(self._complete)

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write data of the disk; see :class:`understudy.storage.LayerWriter`."""
        self._touch(offset, len(data))
        self._arrival.layer.write_at(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zero; whole blocks of it are complete then, for the digest of zeros is known."""
        self._touch(offset, length)
        self._arrival.layer.zero(offset, length)
        first = block_count(offset, self._block_size)
        to_end = offset + length == self._arrival.size
        end = self._arrival.blocks if to_end else (offset + length) // self._block_size
        if first < end:
            self.writer.clear(first, end - first)
            self._completed(first, end - first)

    def put_digests(self, first: int, digests: Buffer) -> None:
        """The blocks from ``first`` on have their content and these digests."""
        self.writer.put(first, digests)
        self._completed(first, len(digests) // DIGEST_BYTES)

    @property
    def writer(self) -> DigestWriter:
        """The digest file; :meth:`begin` must have been called."""
        if self._digests is None:
            raise ReplicaError(f"disk {self._arrival.disk!r}", "its digest file was not begun")
        return self._digests

    def _touch(self, offset: int, length: int) -> None:
        first = offset // self._block_size
        count = block_count(offset + length, self._block_size) - first
        with self._lock:
            self._touched.add(first, count)
            self._former.discard(first, count)

    def _completed(self, first: int, count: int) -> None:
        start = first * self._block_size
        length = min(count * self._block_size, self._arrival.size - start)
        with self._lock:
            self._complete.add(first, count)
            self._new.append(Extent(start, length))

    def claims(self) -> Iterator[tuple[int, int, bytes]]:
        """Runs of blocks that the layer has: first block, count, and their digests; empty if they are unknown."""
        position = 0
        while position < self._arrival.blocks:
            end = min(position + _STEP, self._arrival.blocks)
            with self._lock:
                runs = list(self._runs(position, end))
            for first, count, source in runs:
                yield first, count, source.read(first, count) if source is not None else b""
            position = end

    def _runs(self, position: int, end: int) -> Iterator[tuple[int, int, DigestWriter | UnfinishedDigests | None]]:
        for first, count in self._touched.runs(position, end):
            start, source = first, self._source(first)
            for index in range(first + 1, first + count):
                found = self._source(index)
                if found is not source:
                    yield start, index - start, source
                    start, source = index, found
            yield start, first + count - start, source

    def _source(self, index: int) -> DigestWriter | UnfinishedDigests | None:
        if index in self._complete:
            return self._digests
        return self._former_digests if index in self._former else None

    def content(self, below: BaseDigests) -> BaseDigests:
        """What may be assumed of the replica's content, with what the layer has already on top of ``below``."""
        if not len(self._touched):
            return below
        claims = Claims(below, self._arrival.size, self._block_size, self._known)
        for first, count, digests in self.claims():
            claims.touched.add(first, count)
            if digests:
                claims.claimed.add(first, count)
        return claims

    def _known(self, index: int) -> bytes:
        with self._lock:
            source = self._source(index)
        # Written meanwhile, and so unknown: nobody asks twice for a block.
        return source.read(index, 1) if source is not None else b""

    def checkpoint(self) -> None:
        """Make what is complete durable, and remember it.

        :raises DatastoreError: if the datastore is full or fails.
        """
        with self._lock:
            complete, self._new = self._new, []
        if self._digests is not None:
            self._digests.sync()
        self._arrival.layer.checkpoint(merge(sorted(complete, key=lambda extent: extent.start)))

    def finish(self) -> int:
        """Everything came: complete digests and layer, durable; the checksum of the digests."""
        checksum = self.writer.finish()
        self._arrival.layer.finish()
        return checksum

    def close(self) -> None:
        """Close the digest files; the layer is the draft's."""
        with self._lock:
            if self._digests is not None:
                self._digests.close()
            if self._former_digests is not None:
                self._former_digests.close()
                self._former_digests = None


@contextmanager
def checkpoints(ctx: Context, disk: ArrivingDisk) -> Iterator[None]:
    """Inside the context what came is made durable about once a second, by a thread.

    An error of it is raised at the end: a layer whose checkpoint failed cannot be finished anyway.
    """
    ended = threading.Event()
    errors: list[UnderstudyError] = []

    def run() -> None:
        while not ended.wait(CHECKPOINT_S):
            try:
                disk.checkpoint()
            except UnderstudyError as exc:
                ctx.log(__name__).warning("checkpoint: %s", exc)
                errors.append(exc)
                return

    thread = threading.Thread(target=run, name="checkpoint", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]

