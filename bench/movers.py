"""Movers: disks copied into a new replica by real mover processes, without a controller."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.cpu import CpuMeter, Taken
from bench.lines import UNIX, Inside, Line
from bench.memory import MemoryProbe
from bench.nbd_peer import Server
from bench.tools import BenchError
from understudy.controller.authority import Authorities
from understudy.model.job import Compression
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.process import MoverProcess
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import MIB

BLOCK_SIZE = MIB
CONNECTIONS = 4
PATIENCE_S = 30.0
SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Copied:
    """What one copy took; figures of several disks are sums.

    :ivar taken: from the request to copy until the point was published.
    :ivar sending: seconds from the first request to send until all was sent; 0 without a wire.
    :ivar progress: as the reading mover counts.
    :ivar arrived: as the writing mover counts; the same if it is the same mover.
    :ivar cpu: seconds of each mover and of the servers.
    :ivar peaks: largest resident set of each mover, in MiB; ``private`` is the part that is no file and not shared.
    """

    taken: Taken
    sending: float
    progress: api.Progress
    arrived: api.Progress
    cpu: dict[str, float]
    peaks: dict[str, float]
    private: dict[str, float]


@dataclass
class MoverCopy:
    """Copies disks of equal size, a restore point for each call of :meth:`run`.

    :ivar place: directory for the replica, sockets and state; new movers for each point.
    :ivar servers: one for each disk.
    :ivar compression: None for one mover and no wire.
    """

    place: Path
    servers: Sequence[Server]
    size: int
    compression: Compression | None = None
    line: Line = UNIX
    dirty_context: str = ""
    points: list[str] = field(default_factory=list)
    _identity: ReplicaIdentity = field(
        default_factory=lambda: ReplicaIdentity(str(uuid.uuid4()), "web", "job", "job", "web", "uuid", "uuid2")
    )

    @property
    def ref(self) -> api.ReplicaRef:
        """The replica."""
        return api.ReplicaRef("qcow2", str(self.place / "store"), "web")

    @property
    def disks(self) -> tuple[str, ...]:
        """The names of the disks, in the order of the servers."""
        return tuple(f"vd{chr(ord('a') + number)}" for number in range(len(self.servers)))

    def forget(self) -> None:
        """Remove the replica and all state; the next point is the first one again."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.points.clear()

    def run(self, mode: TransferMode = TransferMode.FULL) -> Copied:
        """Make the next restore point."""
        (self.place / "store").mkdir(parents=True, exist_ok=True)
        with self._movers() as (source, target):
            draft, reads = self._begin(target.client, mode)
            point = reads[0].point
            pids = {TARGET: [target.pid], SOURCE: [source.pid] if source is not target else [],
                    "servers": [server.pid for server in self.servers]}  # fmt: skip
            with MemoryProbe(pids[SOURCE]) as near, MemoryProbe(pids[TARGET]) as far, CpuMeter(pids) as cpu:
                started = time.monotonic()
                if self.compression is None:
                    sent, progress = 0.0, _copied(target.client, reads, draft)
                    arrived = progress
                else:
                    sent, progress, arrived = self._send(source.client, target.client, reads, draft, self.compression)
                self._publish(target.client, draft, point)
                seconds = time.monotonic() - started
            source.client.call(api.KeepDigests(self._identity.id, point, self.disks), api.Nothing)
            target.client.call(api.ReleaseDraft(draft), api.Nothing)
        self.points.append(point)
        peaks, private = ({SOURCE: a, TARGET: b} for a, b in ((near.peak, far.peak), (near.private, far.private)))
        return Copied(Taken(seconds, cpu.seconds), sent, progress, arrived, cpu.parts, peaks, private)

    def images(self) -> list[Path]:
        """The images that show the newest point, in the order of the servers."""
        with self._movers() as (_, target):
            facts = target.client.call(api.InspectReplica(self.ref), api.ReplicaFacts)
        return [Path(facts.images[self.points[-1]][disk]) for disk in self.disks]

    @contextmanager
    def _movers(self) -> Iterator[tuple[MoverProcess, MoverProcess]]:
        """Source and target mover; the same one if there is no wire."""
        with ExitStack() as stack:
            target = stack.enter_context(self._mover(TARGET, self.line.far, self.line.listen))
            yield (stack.enter_context(self._mover(SOURCE, self.line.near)) if self.compression else target), target

    def _mover(self, name: str, inside: Inside, listen: str = "") -> MoverProcess:
        credentials = None
        if self.line.tls:
            credentials = Authorities(self.place / "home").proxy(self.place / f"{name}-credentials", name)
        run, state, log = (self.place / f"{name}{suffix}" for suffix in ("", "-state", ".log"))
        with inside():
            return MoverProcess(name, run, state, log, credentials, name if self.line.tls else "", listen)

    def _begin(self, target: MoverClient, mode: TransferMode) -> tuple[str, list[api.ReadSpec]]:
        attempt, chained = len(self.points) + 1, bool(self.points)
        point, base = f"p{attempt}", self.points[-1] if chained else ""
        disks = tuple(NewDisk(disk, self.size, chained) for disk in self.disks)
        request = api.BeginPoint(self.ref, self._identity, attempt, point, disks)
        reads = []
        for disk, server in zip(self.disks, self.servers, strict=True):
            where = api.NbdSource(str(server.socket), "", self.dirty_context)
            reads.append(
                api.ReadSpec(where, disk, self.size, mode, BLOCK_SIZE, chained, self._identity.id, base, point)
            )
        return target.call(request, api.DraftOpened).draft, reads

    def _send(
        self, source: MoverClient, target: MoverClient, reads: list[api.ReadSpec], draft: str, compression: Compression
    ) -> tuple[float, api.Progress, api.Progress]:
        """Seconds of sending, and what both movers counted."""
        source_identity, target_identity = (SOURCE, TARGET) if self.line.tls else ("", "")
        receives = []
        for read in reads:
            request = api.ReceiveDisk(draft, read.disk, read.size, read.block_size, source_identity, PATIENCE_S)
            receives.append(target.call(request, api.ReceiveStarted))
        began = time.monotonic()
        sends = []
        for read, receive in zip(reads, receives, strict=True):
            address = api.TargetAddress(self.line.address or receive.socket, target_identity, receive.ticket)
            send = api.SendDisk(read, address, compression, CONNECTIONS, PATIENCE_S)
            sends.append(source.call(send, api.WorkStarted).work)
        progress = [_finish(source, work) for work in sends]
        seconds = time.monotonic() - began
        return seconds, _sum(progress), _sum([_finish(target, receive.work) for receive in receives])

    def _publish(self, target: MoverClient, draft: str, point: str) -> None:
        meta = PointMeta(point, "2025-01-01T00:00:00Z", Consistency.CRASH, 1, BLOCK_SIZE, None, {}, "<domain/>")
        target.call(api.PublishPoint(draft, meta), api.PublishedPoint)


def costs(copies: Sequence[Copied]) -> dict[str, list[float]]:
    """Where the time of copies went, as details of a row: processor seconds, busy seconds of each part, what was sent.

    Busy seconds are sums over threads, as the reading mover counts them; ``arrived``: as the writing one does.
    """
    found: dict[str, list[float]] = {f"cpu_{who}_s": [copied.cpu[who] for copied in copies] for who in copies[0].cpu}
    for part in copies[0].progress.busy or {}:
        found[f"busy_{part}_s"] = [(copied.progress.busy or {})[part] for copied in copies]
        if any(copied.arrived is not copied.progress for copied in copies):
            found[f"busy_arrived_{part}_s"] = [(copied.arrived.busy or {})[part] for copied in copies]
    found["wire_mib"] = [copied.progress.wire / MIB for copied in copies]
    return found


def _copied(target: MoverClient, reads: list[api.ReadSpec], draft: str) -> api.Progress:
    works = [target.call(api.CopyDisk(read, draft), api.WorkStarted).work for read in reads]
    return _sum([_finish(target, work) for work in works])


def _finish(mover: MoverClient, work: str) -> api.Progress:
    while True:
        status = mover.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        if status.error is not None:
            raise BenchError(f"the mover failed: {status.error.what}: {status.error.why}")
        if status.state is not api.WorkState.RUNNING:
            return status.progress


def _sum(parts: list[api.Progress]) -> api.Progress:
    """The parts that the rows show, added up."""
    first = parts[0]
    busy = {name: sum((part.busy or {})[name] for part in parts) for name in first.busy or {}}
    return replace(first, total=sum(part.total for part in parts), processed=sum(part.processed for part in parts),
                   read=sum(part.read for part in parts), sent=sum(part.sent for part in parts),
                   wire=sum(part.wire for part in parts), zero=sum(part.zero for part in parts), busy=busy)  # fmt: skip
