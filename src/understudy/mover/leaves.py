"""Leaves: where the disks of a draft are written whose store holds no images, through a vendor's disk library."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from understudy.errors import DatastoreError, Refused, ReplicaError, UnderstudyError, UsageError
from understudy.faults import fault_point
from understudy.model.extent import Extent, round_out
from understudy.model.health import health_of
from understudy.model.snapshot import LibraryExport
from understudy.mover import api
from understudy.mover.base import Doubted, PointDigests
from understudy.mover.digest import DigestReader
from understudy.mover.exports import Exports
from understudy.mover.library_errors import Reason
from understudy.storage import Buffer, LayerWriter, LeafReader, PointDraft, ReplicaStore
from understudy.storage.values import NewDisk

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaf:
    """One disk's leaf.

    :ivar reader: reads on the writer's connection: the library opens a disk for writing only once.
    """

    source: api.NbdSource
    reader: LeafReader


class Leaves:
    """The leaves of a draft: none until :meth:`attach`, held until :meth:`close`."""

    def __init__(self) -> None:
        self._leaves: dict[str, Leaf] = {}
        self._open = ExitStack()
        self._exports: Exports | None = None
        self.sealed = False

    @property
    def attached(self) -> bool:
        """Whether the disks are written to leaves."""
        return bool(self._leaves)

    def attach(self, exports: Exports, held: Sequence[Held], leaves: Sequence[LibraryExport], tag: str) -> None:
        """Open every leaf for writing, and have the draft write there; if one refuses, the draft can only be ended.

        :param held: the disks of the draft, as many as leaves.
        :raises UsageError: if the leaves are not those of the draft's disks.
        :raises UnderstudyError: if the library refuses.
        """
        by_name = {leaf.disk.name: leaf for leaf in leaves}
        names = sorted(item.disk.name for item in held)
        if len(by_name) != len(leaves) or sorted(by_name) != names:
            raise UsageError("attach disks", f"the draft has the disks {', '.join(names)}")
        with ExitStack() as stack:
            opened = []
            for item in held:
                key, source = exports.open_library(api.OpenLibraryExport(by_name[item.disk.name], tag, writable=True))
                stack.callback(exports.close, key)
                opened.append(source)
            attached = {item.disk.name: Leaf(source, item.attach(stack, source))
                        for item, source in zip(held, opened, strict=True)}
            self._leaves, self._open = attached, stack.pop_all()
        self._exports = exports

    def stop(self) -> None:
        """Whoever writes to one gives up, from now on."""
        for leaf in self._leaves.values():
            leaf.reader.stop()

    def seal(self) -> None:
        """Everything was written and is durable: let go of the leaves."""
        fault_point("mover.seal")
        self.close()
        self.sealed = True

    def close(self) -> None:
        """End the exports; nothing happens if that was done."""
        self._open.close()

    def content(self, disk: str) -> LeafContent | None:
        """What the leaf of ``disk`` holds; None if it has none."""
        leaf = self._leaves.get(disk)
        return LeafContent(leaf.reader) if leaf is not None else None

    def layer(self, disk: str, layer: LayerWriter) -> LayerWriter:
        """``layer``, the writer of ``disk``; if that is written to a leaf, its errors say what the library said."""
        leaf = self._leaves.get(disk)
        if leaf is None or self._exports is None:
            return layer
        return _ExplainedLayer(layer, functools.partial(self._exports.reason, leaf.source))


class _ExplainedLayer:
    """A layer whose errors say what the disk library said: by NBD comes only that there was an error.

    They do so from the start, because the other side of a transfer is told them at once.
    """

    def __init__(self, layer: LayerWriter, reason: Callable[[], Reason | None]) -> None:
        self._layer = layer
        self._reason = reason

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._explaining():
            self._layer.write_at(offset, data)

    def zero(self, offset: int, length: int) -> None:
        with self._explaining():
            self._layer.zero(offset, length)

    def checkpoint(self, complete: Sequence[Extent]) -> None:
        with self._explaining():
            self._layer.checkpoint(complete)

    def finish(self) -> None:
        with self._explaining():
            self._layer.finish()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except DatastoreError as exc:
            reason = self._reason()
            if reason is None:
                raise
            raise DatastoreError(exc.what, f"{exc.why} ({reason.why})", reason.todo) from exc


class LeafContent:
    """What a leaf holds, as a :class:`understudy.mover.below.Content`.

    A block that is asked for was not written by this attempt, so the leaf shows there what it did below; or it was,
    and comes again: then what differs from the leaf is what must still be written.
    """

    def __init__(self, reader: LeafReader) -> None:
        self._reader = reader
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view``; False if that failed."""
        if self._stopped:
            return False
        try:
            self._reader.read_at(offset, view)
        except UnderstudyError as exc:
            LOG.warning("a leaf cannot be read: %s", exc)
            return False
        return True

    def stop(self) -> None:
        """Nothing is read any more; writing goes on."""
        self._stopped = True


@dataclass(frozen=True)
class Held:
    """A disk of a draft, and what it holds before anything is written: that of the newest point, or nothing.

    :ivar base_point: the newest point when the draft began.
    """

    store: ReplicaStore
    draft: PointDraft
    disk: NewDisk
    base_point: str

    def attach(self, stack: ExitStack, source: api.NbdSource) -> LeafReader:
        """Have the draft write the disk to an export; ``stack`` closes what is needed for that."""
        if not self.disk.chained:
            return self.draft.attach(self.disk.name, source.socket, source.export, lambda _: ())
        digests = self._digests()
        if digests is None:
            return self.draft.attach(self.disk.name, source.socket, source.export, lambda run: (run,))
        stack.callback(digests.close)
        # What verifying found damaged does not hold what its digests say.
        suspect = health_of(self.store.health(), self.base_point, self.disk.name).bad
        size, block_size = self.disk.size, digests.header.block_size
        known = Doubted(PointDigests(digests, size), size, block_size, suspect)

        def holds(run: Extent) -> list[Extent]:
            (blocks,) = round_out([run], block_size, size)
            return known.nonzero(blocks)

        return self.draft.attach(self.disk.name, source.socket, source.export, holds)

    def _digests(self) -> DigestReader | None:
        """Of the newest point; None if they are lost or damaged: then the disk may hold anything anywhere."""
        path = self.draft.base_digest_path(self.disk.name)
        try:
            reader = DigestReader(path) if path is not None else None
        except ReplicaError as exc:
            LOG.warning("zeros are written wherever the disk may hold something: %s", exc)
            return None
        if reader is not None and (reader.header.point, reader.header.size) != (self.base_point, self.disk.size):
            reader.close()
            return None
        return reader


def refuse_unsealed(what: str, leaves: Leaves) -> None:
    """:raises Refused: if leaves are attached that are not sealed: the platform could have made no snapshot of them."""
    if leaves.attached and not leaves.sealed:
        raise Refused(what, "the leaves of its disks are still open", "seal the point, and make its snapshot, before")
