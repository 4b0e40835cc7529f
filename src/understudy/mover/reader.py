"""Reader: carries out a plan with several threads, each with its own connection and several reads in flight."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from understudy.certificates import Credentials
from understudy.context import Context
from understudy.errors import TrackingLost, TransferError
from understudy.mover.api import NbdSource
from understudy.mover.crew import Crew
from understudy.mover.meter import Counters, Meter
from understudy.mover.plan import Plan, ReadBlock, Skipped, ZeroRun
from understudy.nbd import ALLOCATION, NbdClient, lets_anybody_in, tls_directory
from understudy.units import block_count

THREADS = 3
READS_IN_FLIGHT = 4
POLL_S = 0.2


class Consumer(Protocol):
    """What happens with blocks; one for each thread."""

    def block(self, item: ReadBlock, view: memoryview) -> None:
        """A block was read; ``view`` is only valid during the call."""

    def zeros(self, item: ZeroRun) -> None:
        """Blocks are zero without having been read."""


ConsumerFactory = Callable[[Counters], Consumer]


class Source:
    """Connections to one export: the first for the plan, more for the reading threads.

    :param tracked: the dirty context must be there.
    :param credentials: of this proxy, for servers on other hosts.
    :raises TransferError: if the export cannot be reached or has another size than ``size``, or if a server on another
        host lets in whoever comes.
    :raises TrackingLost: if ``tracked`` and the server has no such dirty context.
    """

    def __init__(
        self, where: NbdSource, size: int, *, tracked: bool = False, credentials: Credentials | None = None
    ) -> None:
        self._where = where
        self._tls_dir = _tls_directory(where, credentials) if where.address else None
        self.planner = self._connect((ALLOCATION, where.dirty_context) if tracked else (ALLOCATION,))
        try:
            if self._tls_dir is not None and lets_anybody_in(where.address, where.export, self._tls_dir):
                raise TransferError(f"read {self.planner.name}", "its server asks nobody for a certificate",
                                    "set backup_tls_x509_verify = 1 in /etc/libvirt/qemu.conf of the source host")
            if self.planner.size != size:
                raise TransferError(f"read {self.planner.name}", f"it has {self.planner.size} bytes, expected {size}",
                                    "run the job again")
            if tracked and not (where.dirty_context and self.planner.has(where.dirty_context)):
                raise TrackingLost(f"read {self.planner.name}", f"no dirty map {where.dirty_context!r} is served")
        except BaseException:
            self.planner.abort()
            raise

    def readers(self) -> list[NbdClient]:
        """Connections for the reading threads.

        Without multi_conn the server may not accept a second connection: then one thread shares the planner's.
        """
        if not self.planner.multi_conn:
            return [self.planner]
        clients: list[NbdClient] = []
        try:
            for _ in range(THREADS):
                clients.append(self._connect())
        except BaseException:
            for client in clients:
                client.abort()
            raise
        return clients

    def close(self) -> None:
        """Close the planner's connection."""
        self.planner.close()

    def _connect(self, contexts: tuple[str, ...] = ()) -> NbdClient:
        return NbdClient(self._where.address or self._where.socket, self._where.export, contexts, self._tls_dir)


def _tls_directory(where: NbdSource, credentials: Credentials | None) -> Path:
    what = f"read {where.address}:{where.export}"
    if credentials is None:
        raise TransferError(what, "this proxy has no certificate", "use a proxy that has one")
    try:
        return tls_directory(credentials)
    except OSError as exc:
        raise TransferError(what, f"the certificates of this proxy cannot be used: {exc}") from exc


def read_plan(
    ctx: Context, source: Source, plan: Plan, meter: Meter, consumer: ConsumerFactory, *,
    wake: Callable[[], None] = lambda: None,
) -> None:
    """Read everything that ``plan`` wants and give it to consumers, one for each thread.

    :param wake: ends waits of the consumers when the others stop.

    :raises TransferError: if reading fails, or if at the end completed work is not planned work.
    """
    crew = Crew(ctx, "read", wake)
    clients = source.readers()
    threads = [_ReaderThread(client, plan, crew, meter.counters(), consumer) for client in clients]
    try:
        crew.run([thread.run for thread in threads])
    finally:
        for client in clients:
            client.close()
    sums = meter.sums()
    problem = plan.imbalance(sums.blocks, sums.processed)
    if problem:
        raise TransferError(f"read {source.planner.name}", f"the balance does not match: {problem}")


class _ReaderThread:
    def __init__(
        self, client: NbdClient, plan: Plan, crew: Crew, counters: Counters, consumer: ConsumerFactory
    ) -> None:
        self._client = client
        self._plan = plan
        self._counters = counters
        self._consumer = consumer(counters)
        self._crew = crew
        self._free = [memoryview(bytearray(plan.block_size)) for _ in range(READS_IN_FLIGHT)]
        self._reads: dict[int, tuple[ReadBlock, memoryview]] = {}
        self._ended = False

    def run(self) -> None:
        while True:
            self._crew.check()
            self._fill()
            if not self._reads:
                return
            if not self._reap():
                started = time.monotonic()
                self._client.poll(POLL_S)
                self._counters.source += time.monotonic() - started

    def _fill(self) -> None:
        """Take items until as many reads as allowed are in flight; items without a read are done at once."""
        while self._free and not self._ended:
            self._crew.check()
            item = self._plan.take()
            if item is None:
                self._ended = True
            elif isinstance(item, ReadBlock):
                view = self._free.pop()
                cookie = self._client.start_read(view[: item.block.length], item.block.start)
                self._reads[cookie] = (item, view)
            elif isinstance(item, ZeroRun):
                self._consumer.zeros(item)
                self._count(item.run.length)
                self._counters.zero += item.run.length
            else:
                self._skip(item)

    def _reap(self) -> bool:
        """Process one read that is complete, if there is one."""
        cookie = next((cookie for cookie in self._reads if self._client.finished(cookie)), None)
        if cookie is None:
            return False
        item, view = self._reads.pop(cookie)
        self._consumer.block(item, view[: item.block.length])
        self._free.append(view)
        self._counters.read += item.block.length
        self._count(item.block.length)
        return True

    def _skip(self, item: Skipped) -> None:
        self._counters.processed += item.unchanged + item.zero
        self._counters.zero += item.zero

    def _count(self, length: int) -> None:
        self._counters.processed += length
        self._counters.blocks += block_count(length, self._plan.block_size)
