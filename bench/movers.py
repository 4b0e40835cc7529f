"""Movers: one disk copied into a new replica by real mover processes, without a controller."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.cpu import CpuMeter, Taken
from bench.memory import MemoryProbe
from bench.nbd_peer import Server
from bench.tools import BenchError
from understudy.model.job import Compression
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.process import MoverProcess
from understudy.storage import NewDisk, PointMeta
from understudy.units import MIB

DISK = "vda"
BLOCK_SIZE = MIB
CONNECTIONS = 4
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Copied:
    """What one copy took.

    :ivar taken: from the request to copy until the point was published.
    :ivar peak: largest resident set of a mover, in MiB; ``private`` is the part that is no file and not shared.
    """

    taken: Taken
    progress: api.Progress
    peak: float
    private: float


@dataclass
class MoverCopy:
    """Copies one disk, a restore point for each call of :meth:`run`.

    :ivar place: directory for the replica, sockets and state; new movers for each point.
    :ivar compression: None for one mover and no wire.
    """

    place: Path
    server: Server
    size: int
    compression: Compression | None = None
    dirty_context: str = ""
    points: list[str] = field(default_factory=list)
    _identity: ReplicaIdentity = field(
        default_factory=lambda: ReplicaIdentity(str(uuid.uuid4()), "web", "job", "job", "web", "uuid", "uuid2")
    )

    @property
    def ref(self) -> api.ReplicaRef:
        """The replica."""
        return api.ReplicaRef("qcow2", str(self.place / "store"), "web")

    def forget(self) -> None:
        """Remove the replica and all state; the next point is the first one again."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.points.clear()

    def run(self, mode: TransferMode = TransferMode.FULL) -> Copied:
        """Make the next restore point."""
        (self.place / "store").mkdir(parents=True, exist_ok=True)
        with self._movers() as (source, target):
            draft, read = self._begin(target.client, mode)
            pids = {source.pid, target.pid}
            with MemoryProbe(lambda: pids) as probe, CpuMeter(pids | {self.server.pid}) as cpu:
                started = time.monotonic()
                progress = self._transfer(source.client, target.client, read, draft)
                self._publish(target.client, draft, read.point)
                seconds = time.monotonic() - started
            source.client.call(api.KeepDigests(self._identity.id, read.point, (DISK,)), api.Nothing)
            target.client.call(api.ReleaseDraft(draft), api.Nothing)
        self.points.append(read.point)
        return Copied(Taken(seconds, cpu.seconds), progress, probe.peak, probe.private)

    def image(self) -> Path:
        """The image that shows the newest point."""
        with self._movers() as (_, target):
            facts = target.client.call(api.InspectReplica(self.ref), api.ReplicaFacts)
        return Path(facts.images[self.points[-1]][DISK])

    @contextmanager
    def _movers(self) -> Iterator[tuple[MoverProcess, MoverProcess]]:
        """Source and target mover; the same one if there is no wire."""
        with ExitStack() as stack:
            target = stack.enter_context(self._mover("t"))
            yield (target if self.compression is None else stack.enter_context(self._mover("s"))), target

    def _mover(self, name: str) -> MoverProcess:
        return MoverProcess(name, self.place / name, self.place / f"{name}-state", self.place / f"{name}.log")

    def _begin(self, target: MoverClient, mode: TransferMode) -> tuple[str, api.ReadSpec]:
        attempt, chained = len(self.points) + 1, bool(self.points)
        point, base = f"p{attempt}", self.points[-1] if chained else ""
        disks = (NewDisk(DISK, self.size, chained),)
        request = api.BeginPoint(self.ref, self._identity, attempt, point, disks)
        where = api.NbdSource(str(self.server.socket), "", self.dirty_context)
        read = api.ReadSpec(where, DISK, self.size, mode, BLOCK_SIZE, chained, self._identity.id, base, point)
        return target.call(request, api.DraftOpened).draft, read

    def _transfer(self, source: MoverClient, target: MoverClient, read: api.ReadSpec, draft: str) -> api.Progress:
        if self.compression is None:
            return _finish(target, target.call(api.CopyDisk(read, draft), api.WorkStarted).work)
        receive = api.ReceiveDisk(draft, DISK, read.size, read.block_size, "", PATIENCE_S)
        started = target.call(receive, api.ReceiveStarted)
        address = api.TargetAddress(started.socket, "", started.ticket)
        send = api.SendDisk(read, address, self.compression, CONNECTIONS, PATIENCE_S)
        progress = _finish(source, source.call(send, api.WorkStarted).work)
        _finish(target, started.work)
        return progress

    def _publish(self, target: MoverClient, draft: str, point: str) -> None:
        meta = PointMeta(point, "2025-01-01T00:00:00Z", Consistency.CRASH, 1, BLOCK_SIZE, None, {}, "<domain/>")
        target.call(api.PublishPoint(draft, meta), api.PublishedPoint)


def _finish(mover: MoverClient, work: str) -> api.Progress:
    while True:
        status = mover.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        if status.error is not None:
            raise BenchError(f"the mover failed: {status.error.what}: {status.error.why}")
        if status.state is not api.WorkState.RUNNING:
            return status.progress
