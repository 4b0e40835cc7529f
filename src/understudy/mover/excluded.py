"""Excluded: a disk as if E, what its restore point leaves out, read as zeros (S10).

Everything behind it - plan, digests, sample check, audit, parts, repair, layers that are continued - sees a disk in
which E is zero, and whose dirty map tells where it differs from the one before, in which another E was zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.errors import UsageError
from understudy.model.exclusion import ranges_of
from understudy.model.extent import Extent, intersect, subtract, unite, within
from understudy.mover.api import ReadSpec
from understudy.mover.reader import Client, DiskSource
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG
from understudy.units import MIB

#: Flag of ``base:allocation``: nothing is allocated (NBD protocol, NBD_STATE_HOLE).
HOLE_FLAG = 1
_ZEROS = memoryview(bytes(MIB))


@dataclass(frozen=True)
class Masks:
    """What is laid over a disk; all sorted and disjoint.

    :ivar zero: E, with the flags that the allocation map has there.
    :ivar dirty: where the dirty map is not the server's, with the flag that it has instead.
    """

    zero: tuple[Extent, ...]
    dirty: tuple[Extent, ...]

    def read(self, view: memoryview, start: int) -> None:
        """Make zero what of ``view``, which was read at ``start``, is left out."""
        for item in within(self.zero, start, start + len(view)):
            for position in range(item.start - start, item.end - start, MIB):
                end = min(position + MIB, item.end - start)
                view[position:end] = _ZEROS[: end - position]

    def told(self, statuses: dict[str, list[Extent]], dirty_context: str, area: Extent) -> dict[str, list[Extent]]:
        """Block status of ``area``, with E."""
        found = {name: _overlaid(extents, self.dirty if name == dirty_context else self.zero, area)
                 for name, extents in statuses.items() if name in (dirty_context, ALLOCATION)}
        return statuses | found


def masks_of(read: ReadSpec) -> Masks | None:
    """What is laid over the disk that is read; None if nothing is.

    The dirty map is to tell of the disk with E in it. What is in E now and was before is zero in both, whatever the
    guest wrote there. What is in one of them only changed, though nobody wrote to it. What was in E at the point since
    which changes are tracked, if that is an older one, may have content that neither the map nor digests tell of.

    :raises UsageError: if the ranges are none of this disk.
    """
    if not (read.excluded or read.formerly_excluded or read.once_excluded):
        return None
    now = _ranges(read, read.excluded)
    before = _ranges(read, read.formerly_excluded)
    once = _ranges(read, read.once_excluded)
    both = intersect(now, before)
    changed = unite(subtract(unite(now, before), both), subtract(once, now))
    dirty = [*(Extent(item.start, item.length) for item in both),
             *(Extent(item.start, item.length, DIRTY_FLAG) for item in changed)]
    zero = tuple(Extent(item.start, item.length, ZERO_FLAG | HOLE_FLAG) for item in now)
    return Masks(zero, tuple(sorted(dirty, key=lambda item: item.start)))


def _ranges(read: ReadSpec, packed: str) -> tuple[Extent, ...]:
    try:
        return ranges_of(packed, read.size)
    except ValueError as exc:
        raise UsageError(f"copy disk {read.disk!r}", f"what it leaves out cannot be understood: {exc}",
                         "run the job again") from exc


def masked(source: DiskSource, read: ReadSpec) -> DiskSource:
    """``source`` with what ``read`` leaves out; the same object if that is nothing.

    :raises UsageError: see :func:`masks_of`.
    """
    masks = masks_of(read)
    return source if masks is None else MaskedSource(source, masks, read.source.dirty_context)


class MaskedSource:
    """A :class:`~understudy.mover.reader.DiskSource` in which E reads as zeros."""

    def __init__(self, source: DiskSource, masks: Masks, dirty_context: str) -> None:
        self._source = source
        self._masks = masks
        self._dirty_context = dirty_context
        self.planner: Client = MaskedClient(source.planner, masks, dirty_context)

    def has(self, context: str) -> bool:
        """As of the source."""
        return self._source.has(context)

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """As of the source, with E."""
        return self.planner.statuses(start, length, at_least)

    def allocation(self, run: Extent) -> list[Extent]:
        """As of the source, with E."""
        return _overlaid(self._source.allocation(run), self._masks.zero, run)

    def readers(self, threads: int) -> list[Client]:
        """As of the source; what they read is zero in E."""
        return [MaskedClient(client, self._masks, self._dirty_context) for client in self._source.readers(threads)]

    def close(self) -> None:
        """Close the connections that are not a reading thread's."""
        self._source.close()


class MaskedClient:
    """A connection through which E reads as zeros."""

    def __init__(self, client: Client, masks: Masks, dirty_context: str) -> None:
        self._client = client
        self._masks = masks
        self._dirty_context = dirty_context
        self._reads: dict[int, tuple[memoryview, int]] = {}
        self.name, self.size, self.multi_conn = client.name, client.size, client.multi_conn

    def has(self, context: str) -> bool:
        """As of the connection."""
        return self._client.has(context)

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """As of the connection, with E."""
        known, statuses = self._client.statuses(start, length, at_least)
        return known, self._masks.told(statuses, self._dirty_context, Extent(start, known))

    def start_read(self, view: memoryview, offset: int) -> int:
        """As of the connection; ``view`` has the masked content when :meth:`finished` says so."""
        cookie = self._client.start_read(view, offset)
        self._reads[cookie] = (view, offset)
        return cookie

    def finished(self, cookie: int) -> bool:
        """Whether the read is complete, and masked."""
        if not self._client.finished(cookie):
            return False
        self._masks.read(*self._reads.pop(cookie))
        return True

    def read(self, view: memoryview, offset: int) -> None:
        """As of the connection, masked."""
        self._client.read(view, offset)
        self._masks.read(view, offset)

    def poll(self, timeout_s: float) -> None:
        """As of the connection."""
        self._client.poll(timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._client.abort()


def _overlaid(statuses: list[Extent], cover: Sequence[Extent], area: Extent) -> list[Extent]:
    """``statuses`` of ``area``, but as ``cover`` says where that says something; one linear walk."""
    inside = within(cover, area.start, area.end)
    if not inside:
        return statuses
    return sorted([*subtract(statuses, inside), *inside], key=lambda item: item.start)
