"""Reader: carries out a plan with several threads, each with its own connection and several reads in flight."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from understudy.certificates import Credentials
from understudy.context import Context
from understudy.errors import TrackingLost, TransferError
from understudy.model.extent import Extent
from understudy.mover import api
from understudy.mover.changed import ChangedClient, areas_of
from understudy.mover.crew import Crew
from understudy.mover.meter import Counters, Meter
from understudy.mover.plan import Conclusion, Plan, ReadBlock, Skipped, StatusSource, ZeroRun
from understudy.nbd import ALLOCATION, NbdClient, lets_anybody_in, tls_directory
from understudy.units import MIB

#: Readers beyond the cores only push each other's blocks out of the caches.
THREADS = min(3, max(2, os.cpu_count() or 1))
#: Reads in flight of each thread; fewer if blocks are large.
READS_IN_FLIGHT = 4
#: A block should still be in the cache when its digest is made: with 3 threads and 4 MiB in flight each, reading and
#: digesting a GiB took 1.1 s of processor time, with 2 and 2 MiB it took 0.9 s.
BYTES_IN_FLIGHT = 2 * MIB
POLL_S = 0.2


class Consumer(Protocol):
    """What happens with blocks; one for each thread. Whoever completes an item tells the plan that it is done."""

    def block(self, item: ReadBlock, view: memoryview) -> None:
        """A block was read; ``view`` is only valid during the call."""

    def zeros(self, item: ZeroRun) -> None:
        """Blocks are zero without having been read."""

    def conclude(self, item: Conclusion) -> None:
        """All other items are done."""

    def idle(self) -> None:
        """Nothing is to be read, and not everything is done; called several times a second."""


ConsumerFactory = Callable[[Counters], Consumer]


class Client(Protocol):
    """One connection to an export, see :class:`understudy.nbd.NbdClient`."""

    name: str
    size: int
    multi_conn: bool

    def has(self, context: str) -> bool:
        """Whether the server granted the meta context."""

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """Block status from ``start``."""

    def start_read(self, view: memoryview, offset: int) -> int:
        """Ask for bytes; gives a number for :meth:`finished`."""

    def finished(self, cookie: int) -> bool:
        """Whether the read is complete."""

    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view``."""

    def poll(self, timeout_s: float) -> None:
        """Wait until something moved."""

    def close(self) -> None:
        """Say goodbye and close."""

    def abort(self) -> None:
        """Close without waiting."""


class DiskSource(StatusSource, Protocol):
    """Connections to one disk that is read: the first for the plan, more for the reading threads."""

    @property
    def planner(self) -> Client:
        """The connection that is asked for block status."""

    def has(self, context: str) -> bool:
        """Whether block status tells of the context."""

    def readers(self, threads: int) -> Sequence[Client]:
        """Connections for at most ``threads`` reading threads, which close them."""

    def close(self) -> None:
        """Close the connections that are not a reading thread's."""


class Source:
    """A :class:`DiskSource`: connections to one export, the first for the plan, more for the reading threads.

    A tracked export is asked for the dirty map and for what is allocated on two connections, because a server answers
    for all contexts of a connection, and the second answer costs it far more: it has to look into the image's file.
    Of an export whose changed areas the mover keeps, the server is asked for what is allocated alone.

    :param tracked: the dirty context must be there.
    :param credentials: of this proxy, for servers on other hosts.
    :raises TransferError: if the export cannot be reached or has another size than ``size``, or if a server on another
        host lets in whoever comes.
    :raises TrackingLost: if ``tracked`` and the server has no such dirty context.
    """

    def __init__(
        self, where: api.NbdSource, size: int, *, tracked: bool = False, credentials: Credentials | None = None
    ) -> None:
        self._where = where
        self._tls_dir = _tls_directory(where, credentials) if where.address else None
        areas = areas_of(where)
        self._first = self._connect((ALLOCATION,)) if areas is not None else self._connect_for_maps(tracked)
        # Who is asked for what is allocated, when the planner is not.
        self._allocation = self._first if areas is not None or not self._first.multi_conn else None
        self.planner: Client = self._first
        if areas is not None:
            self.planner = ChangedClient(self._first, where.dirty_context, areas, alone=tracked)
        try:
            if self._tls_dir is not None and lets_anybody_in(where.address, where.export, self._tls_dir):
                raise TransferError(f"read {self.planner.name}", "its server asks nobody for a certificate",
                                    "set backup_tls_x509_verify = 1 in /etc/libvirt/qemu.conf of the source host")
            if self.planner.size != size:
                raise TransferError(f"read {self.planner.name}", f"it has {self.planner.size} bytes, expected {size}",
                                    "run the job again")
            if tracked and not (where.dirty_context and self.planner.has(where.dirty_context)):
                context = where.dirty_context and f" {where.dirty_context!r}"
                raise TrackingLost(f"read {self.planner.name}", f"no dirty map{context} is served")
        except BaseException:
            self.planner.abort()
            raise

    def has(self, context: str) -> bool:
        """Whether block status tells of the context."""
        return self.planner.has(context)

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """See :class:`understudy.mover.plan.StatusSource`."""
        return self.planner.statuses(start, length, at_least)

    def allocation(self, run: Extent) -> list[Extent]:
        """See :class:`understudy.mover.plan.StatusSource`; empty if the server does not tell."""
        if self._allocation is None:
            self._allocation = self._connect((ALLOCATION,))
        return self._allocation.statuses(run.start, run.length, run.length)[1].get(ALLOCATION, [])

    def readers(self, threads: int) -> list[Client]:
        """Connections for ``threads`` reading threads.

        Without multi_conn the server may not accept a second connection: then one thread shares the planner's.
        """
        if not self.planner.multi_conn:
            return [self.planner]
        clients: list[Client] = []
        try:
            for _ in range(threads):
                clients.append(self._connect())
        except BaseException:
            for client in clients:
                client.abort()
            raise
        return clients

    def close(self) -> None:
        """Close the connections that are not a reading thread's."""
        self.planner.close()
        if self._allocation is not None:
            self._allocation.close()

    def _connect_for_maps(self, tracked: bool) -> NbdClient:
        """The connection for block status; if it stays the only one, it is asked for everything."""
        both = (ALLOCATION, self._where.dirty_context) if self._where.dirty_context else (ALLOCATION,)
        client = self._connect((self._where.dirty_context,) if tracked else both)
        if not tracked or client.multi_conn:
            return client
        client.close()
        return self._connect(both)

    def _connect(self, contexts: tuple[str, ...] = ()) -> NbdClient:
        return NbdClient(self._where.address or self._where.socket, self._where.export, contexts, self._tls_dir)


def _tls_directory(where: api.NbdSource, credentials: Credentials | None) -> Path:
    what = f"read {where.address}:{where.export}"
    if credentials is None:
        raise TransferError(what, "this proxy has no certificate", "use a proxy that has one")
    try:
        return tls_directory(credentials)
    except OSError as exc:
        raise TransferError(what, f"the certificates of this proxy cannot be used: {exc}") from exc


def read_plan(
    ctx: Context, source: DiskSource, plan: Plan, meter: Meter, consumer: ConsumerFactory, *,
    threads: int = THREADS, beside: Sequence[Callable[[], None]] = (), wake: Callable[[], None] = lambda: None,
) -> None:
    """Read everything that ``plan`` wants and give it to consumers, one for each of ``threads`` threads.

    :param beside: functions that run in threads of their own meanwhile; they end by themselves when all is done.
    :param wake: ends waits of the consumers and of ``beside`` when the others stop.

    :raises TransferError: if reading fails, or if at the end completed work is not planned work.
    """
    crew = Crew(ctx, "read", wake)
    clients = source.readers(threads)
    try:
        readers = [_ReaderThread(client, plan, crew, meter.counters(), consumer) for client in clients]
        crew.run([*(reader.run for reader in readers), *beside])
    finally:
        for client in clients:
            client.close()
    problem = plan.imbalance()
    if problem:
        raise TransferError(f"read {source.planner.name}", f"the balance does not match: {problem}")


class _ReaderThread:
    def __init__(
        self, client: Client, plan: Plan, crew: Crew, counters: Counters, consumer: ConsumerFactory
    ) -> None:
        self._client = client
        self._plan = plan
        self._counters = counters
        self._consumer = consumer(counters)
        self._crew = crew
        in_flight = max(1, min(READS_IN_FLIGHT, BYTES_IN_FLIGHT // plan.block_size))
        self._free = [memoryview(bytearray(plan.block_size)) for _ in range(in_flight)]
        self._reads: dict[int, tuple[ReadBlock, memoryview]] = {}

    def run(self) -> None:
        while True:
            self._crew.check()
            self._fill()
            if not self._reads:
                if self._plan.finished:
                    return
                self._consumer.idle()
                self._plan.wait(POLL_S)
            elif not self._reap():
                started = time.monotonic()
                self._client.poll(POLL_S)
                self._counters.source += time.monotonic() - started

    def _fill(self) -> None:
        """Take items until as many reads as allowed are in flight; items without a read are done at once."""
        while self._free:
            self._crew.check()
            item = self._plan.take()
            match item:
                case None:
                    return
                case ReadBlock():
                    view = self._free.pop()
                    cookie = self._client.start_read(view[: item.block.length], item.block.start)
                    self._reads[cookie] = (item, view)
                case ZeroRun():
                    self._consumer.zeros(item)
                case Conclusion():
                    self._consumer.conclude(item)
                case Skipped():
                    pass

    def _reap(self) -> bool:
        """Process one read that is complete, if there is one."""
        cookie = next((cookie for cookie in self._reads if self._client.finished(cookie)), None)
        if cookie is None:
            return False
        item, view = self._reads.pop(cookie)
        self._counters.read += item.block.length
        self._consumer.block(item, view[: item.block.length])
        self._free.append(view)
        return True
