"""How is a disk written in place, at the leaf of a replica VM, through an NBD export?

Several writes are in flight at once, for the way to the platform's host is long. A write that fails is told by a later
call, at the latest by :meth:`LeafWriter.finish`: nothing is complete before.

A server that reaches the leaf through a vendor's disk library has no way to zero but to write zeros, and those fill a
thin disk. So zeros are written only where the disk may hold something else: by what is known of it from before, and
by what this writer wrote itself (S6).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from understudy.errors import DatastoreError, ReplicaError, TransferError, UnderstudyError
from understudy.model.extent import PART, Extent, clip, having, intersect, round_out, span, subtract
from understudy.nbd import ALLOCATION, PIECE, ZERO_FLAG, ZERO_PIECE, NbdClient
from understudy.storage import Buffer
from understudy.units import GIB, MIB, block_count

Holds = Callable[[Extent], Sequence[Extent]]
"""What of a range may hold anything but zeros, by what is known of the disk before anything is written."""

MOST_REQUESTS = 16
MOST_BYTES = 8 * MIB
#: The library has time limits of its own; a server that says nothing for so long does not go on.
ANSWER_TIMEOUT_S = 180.0
#: So many parts of a new disk are looked at, in each area of what is allocated, and in all.
SAMPLES_PER_AREA, MOST_SAMPLES = 16, 512
_POLL_S = 0.2
#: What this writer wrote is remembered in units of that: 8 MB of memory for 62 TiB.
_UNIT = MIB


class LeafWriter:
    """Writes one disk of a new point; a :class:`understudy.storage.LayerWriter`, usable by several threads.

    :param what: the act and the disk, as errors name it.
    :param size: of the disk, which the export must have.
    :param client: the only connection to the export, which is the writer's from now on.
    :raises ReplicaError: if the export does not fit.
    """

    def __init__(self, what: str, size: int, client: NbdClient, holds: Holds) -> None:
        self._what = what
        self._size = size
        self._client = client
        self._holds = holds
        self._lock = threading.Lock()
        self._pending: dict[int, int] = {}
        self._written = bytearray(block_count(size, _UNIT))
        self._changed = False
        self._stopped = False
        self._state = "open"
        self._cause = ""
        if client.size != size or client.read_only:
            why = "cannot be written" if client.read_only else f"has {client.size} bytes instead of {size}"
            client.abort()
            raise ReplicaError(what, f"the leaf of the replica VM {why}", "run the job again")

    @property
    def finished(self) -> bool:
        """Whether the disk is complete and durable."""
        return self._state == "finished"

    def refuse_content(self) -> None:
        """See that a disk that must be new is: zeros are not written to it, so it would show what it has.

        Looked at are some parts of what the server calls allocated, for a thick disk is allocated everywhere.

        :raises ReplicaError: if one of them is not zero.
        """
        with self._call():
            for start in itertools.islice(self._samples(), MOST_SAMPLES):
                part = span(start, min(start + PART, self._size))
                if self._nonzero(part):
                    raise ReplicaError(self._what, f"its new file holds something already, at {start}",
                                       "run the job again; the replica VM must get a new file for this disk")

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``; see :class:`understudy.storage.LayerWriter`."""
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        with self._call():
            for start in range(0, len(view), PIECE):
                piece = bytes(view[start : start + PIECE])
                self._make_room(len(piece))
                self._pending[self._client.start_write(piece, offset + start)] = len(piece)
            for unit in range(offset // _UNIT, block_count(offset + len(view), _UNIT)):
                self._written[unit] = 1
            self._changed = True

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; see :class:`understudy.storage.LayerWriter`."""
        self._check_range(offset, length)
        run = Extent(offset, length)
        with self._call():
            held = clip(self._holds(run), run.start, run.end)
            # What was written here is rarely zeroed again: it is looked at, to fill no more than must be.
            ours = [part for area in subtract(self._ours(run), held) for part in self._nonzero(area)]
            for area in (*held, *ours):
                for start in range(area.start, area.end, ZERO_PIECE):
                    length = min(ZERO_PIECE, area.end - start)
                    cost = min(length, MOST_BYTES // 2)  # the server writes them, and takes its time
                    self._make_room(cost)
                    self._pending[self._client.start_zero(start, length)] = cost
                    self._changed = True

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what the leaf holds from ``offset`` on, where nobody writes just now.

        :raises UnderstudyError: if that fails; then nothing more can be written.
        """
        with self._call():
            self._read(offset, view)

    def checkpoint(self, complete: Sequence[Extent]) -> None:
        """Make durable what was written; of ``complete`` nothing is recorded, for no leaf is ever continued."""
        if any(item.start < 0 or item.end > self._size for item in complete):
            raise ReplicaError(self._what, f"a complete range is outside the disk of {self._size} bytes")
        with self._call():
            if self._changed:
                self._flush()

    def finish(self) -> None:
        """Everything was written: make it durable, and let go of the export.

        :raises DatastoreError: if a write failed before, or now.
        """
        with self._call():
            self._flush()
            self._state = "finished"
            self._client.close()

    def stop(self) -> None:
        """Whoever waits for an answer gives up, from now on, and nothing more can be written."""
        self._stopped = True

    def close(self) -> None:
        """Let go of the export as it is; nothing happens if that was done."""
        self.stop()
        with self._lock:
            if self._state in ("open", "failed"):
                self._state = "closed"
                self._client.abort()

    def _check_range(self, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length < 0 or end > self._size:
            raise ReplicaError(self._what, f"bytes {offset} to {end} are outside the disk of {self._size}")
        if offset % PART or (end % PART and end != self._size):
            raise ReplicaError(self._what, f"bytes {offset} to {end} are not whole parts of {PART}")

    @contextmanager
    def _call(self) -> Iterator[None]:
        """One call at a time; after one that failed the disk can never be finished."""
        with self._lock:
            if self._state == "failed":
                raise DatastoreError(self._what, f"an earlier write to it failed{self._cause}")
            if self._state != "open":
                raise ReplicaError(self._what, "it was finished or closed already")
            try:
                yield
            except BaseException as exc:
                self._state = "failed"
                # Kept for the other threads: theirs may be the error that the operator sees.
                self._cause = f": {exc.why}" if isinstance(exc, UnderstudyError) else ""
                if isinstance(exc, TransferError | DatastoreError):
                    raise DatastoreError(self._what, exc.why, exc.todo) from exc
                raise

    def _make_room(self, length: int) -> None:
        """Wait until there is room for one more request of ``length`` bytes in flight."""

        def fits() -> bool:
            self._reap()
            return len(self._pending) < MOST_REQUESTS and sum(self._pending.values()) + length <= MOST_BYTES

        self._until(fits)

    def _reap(self) -> None:
        for cookie in [cookie for cookie in self._pending if self._client.written(cookie)]:
            del self._pending[cookie]

    def _settle(self) -> None:
        """Wait until nothing is in flight."""

        def settled() -> bool:
            self._reap()
            return not self._pending

        self._until(settled)

    def _flush(self) -> None:
        self._settle()
        cookie = self._client.start_flush()
        self._until(lambda: self._client.written(cookie))
        self._changed = False

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not condition():
            if self._stopped:
                raise ReplicaError(self._what, "its draft has ended")
            if time.monotonic() > deadline:
                raise DatastoreError(self._what, f"no answer within {ANSWER_TIMEOUT_S:.0f} s",
                                     "see that the platform's host and its datastore are well")
            self._client.poll(_POLL_S)

    def _ours(self, run: Extent) -> list[Extent]:
        units = range(run.start // _UNIT, block_count(run.end, _UNIT))
        return intersect([run], [Extent(unit * _UNIT, _UNIT) for unit in units if self._written[unit]])

    def _samples(self) -> Iterator[int]:
        """Where to look in what is allocated: at both ends of every area, and in between."""
        position = 0
        while position < self._size:
            length = min(GIB, self._size - position)
            known, statuses = self._client.statuses(position, length, min(PART, length))
            areas = subtract([Extent(position, known)], having(statuses.get(ALLOCATION, []), ZERO_FLAG))
            for area in round_out(areas, PART, self._size):
                step = max(PART, area.length // SAMPLES_PER_AREA // PART * PART)
                yield from {*range(area.start, area.end, step), (area.end - 1) // PART * PART}
            position += known

    def _nonzero(self, area: Extent) -> list[Extent]:
        """The parts of an area, in which this writer wrote, that are not zero."""
        self._settle()
        found = []
        for start in range(area.start, area.end, PART):
            part = span(start, min(start + PART, area.end))
            view = memoryview(bytearray(part.length))
            self._read(part.start, view)
            if any(view):
                found.append(part)
        return found

    def _read(self, offset: int, view: memoryview) -> None:
        cookie = self._client.start_read(view, offset)
        self._until(lambda: self._client.finished(cookie))
