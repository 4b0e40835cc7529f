"""A replica in a real store that is fed by attempts, some of which fail: what the next one finds there."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.mover.mover_lab import add_bitmap, same_content, served
from tests.unit.mover.wire_lab import BLOCK, SIZE, Receipt, Relay, Sender, Target, checksum, receiving
from understudy.context import Context
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, ReadSpec
from understudy.mover.arriving import Arrival, ArrivingDisk, checkpoints
from understudy.mover.below import Below, Content
from understudy.mover.copier import Copying, DiskSink, check_base, copy_disk, known_content, plan_of
from understudy.mover.digest import DigestReader, copy_digests
from understudy.mover.meter import Counters, Meter
from understudy.mover.reader import Source
from understudy.mover.verify import Pass, verify_disk
from understudy.storage import PointDraft, ReplicaStore, open_store
from understudy.storage.values import NewDisk, PointMeta

IDENTITY = ReplicaIdentity("11111111-2222-3333-4444-555555555555", "web", "j", "j", "web", "u1", "u2")


@dataclass
class Attempt:
    """One try at a restore point; its draft and lock are held."""

    lab: Replica
    point: str
    mode: TransferMode
    chained: bool
    draft: PointDraft
    held: ExitStack
    disk: ArrivingDisk
    receipt: Receipt | None = None
    below: Below | None = None

    @property
    def base_point(self) -> str:
        """The point whose digests are used, or empty."""
        return self.lab.points[-1] if self.chained and self.mode is not TransferMode.FULL else ""

    @property
    def kept_bytes(self) -> int:
        """How much the layer had when it began."""
        return sum(extent.length for extent in self.draft.kept("vda").touched)

    def receive(self, target: Target, content: Content | None = None) -> Receipt:
        """Begin the target side.

        :param content: instead of what the base point really holds.
        """
        below = self.lab.points[-1] if self.chained else ""
        terms = receiving(point=self.point, chained=self.chained, base_point=below,
                          base=self.draft.base_digest_path("vda"))
        self.below = self._below()
        self.receipt = target.receive(self.disk, terms, self.point, content or self.below)
        return self.receipt

    def sender(self, where: NbdSource, connections: int = 2) -> Sender:
        """The source side, not yet begun."""
        base = self.lab.copy_of(self.base_point) if self.base_point else None
        return Sender(where, self.lab.copy_of(self.point), self.mode, self.chained, self.point, self.base_point, base,
                      connections=connections)

    def copy(self, ctx: Context, where: NbdSource) -> Counters:
        """Copy within one mover, as the mover's operation does."""
        read = ReadSpec(where, "vda", SIZE, self.mode, BLOCK, self.chained, "r", self.base_point, self.point)
        meter = Meter()
        with ExitStack() as stack:
            base = stack.enter_context(DigestReader(self.lab.copy_of(self.base_point))) if self.base_point else None
            start = check_base(read, base)
            source = Source(where, SIZE, tracked=self.mode is TransferMode.INCREMENTAL)
            stack.callback(source.close)
            self.disk.begin(start)
            copying = Copying(read, source, self.disk.content(known_content(read, start)), None, meter)
            plan = plan_of(copying)
            below = stack.enter_context(self._below())
            with checkpoints(ctx, self.disk):
                copy_disk(ctx, copying, plan, lambda counters: DiskSink(self.disk, plan, counters, below))
            self.disk.finish()
            copy_digests(self.disk.writer.path, self.lab.copy_of(self.point))
        return meter.sums()

    def _below(self) -> Below:
        image = self.lab.store.image(self.lab.points[-1], "vda") if self.chained else Path("/nothing")
        return Below(lambda: served(self.lab.directory, image))

    def stop(self) -> None:
        """End the target side."""
        if self.receipt is not None:
            self.receipt.stop()
        if self.below is not None:
            self.below.close()

    def keep(self) -> None:
        """End it as a session does that failed."""
        self.stop()
        self.disk.close()
        self.draft.keep()
        self.held.close()

    def crash(self) -> None:
        """End it as if the target was killed: the store goes on from the files as they are now."""
        self.stop()
        self.lab.move_away()
        self.disk.close()
        self.draft.abandon()
        self.held.close()

    def publish(self) -> None:
        """Publish; from now on the source's changes are tracked anew."""
        self.stop()
        self.disk.close()
        meta = PointMeta(self.point, "2026-01-01T00:00:00Z", Consistency.CRASH, 1, BLOCK, None, {}, "<domain/>")
        self.draft.publish(meta)
        self.held.close()
        self.lab.points.append(self.point)
        add_bitmap(self.lab.image, self.lab.bitmap)


@dataclass
class Replica:
    """A source image and its replica."""

    directory: Path
    image: Path
    attempts: int = 0
    moves: int = 0
    points: list[str] = field(default_factory=list)

    @property
    def store(self) -> ReplicaStore:
        """A new store object, as a new process has it."""
        return open_store("qcow2", self.directory / f"ds{self.moves}", "web")

    @property
    def bitmap(self) -> str:
        """The dirty bitmap since the newest point."""
        return f"b-{self.points[-1]}"

    def copy_of(self, point: str) -> Path:
        """The source side's digest file."""
        return self.directory / f"source-{point}.digest"

    def begin(self, mode: TransferMode = TransferMode.FULL, *, chained: bool = False, resume: bool = False) -> Attempt:
        """Begin an attempt; with ``resume`` go on with the one before."""
        self.attempts += 0 if resume else 1
        point = f"p{self.attempts:03d}"
        (self.directory / f"ds{self.moves}").mkdir(exist_ok=True)
        store = self.store
        with ExitStack() as stack:
            stack.enter_context(store.lock(self.attempts))
            store.create(IDENTITY)
            store.sweep()
            begin = store.resume_point if resume else store.begin_point
            draft = begin(point, (NewDisk("vda", SIZE, chained, mark="m"),))
            disk = ArrivingDisk(Arrival("vda", point, SIZE, BLOCK, draft.layer("vda"), draft.digest_path("vda"),
                                        draft.kept("vda")))
            return Attempt(self, point, mode, chained, draft, stack.pop_all(), disk)

    def move_away(self) -> None:
        """Copy the datastore, and use the copy from now on."""
        shutil.copytree(self.directory / f"ds{self.moves}", self.directory / f"ds{self.moves + 1}")
        self.moves += 1

    def check(self) -> None:
        """The newest point shows the source's bytes, and its digests are those of its bytes."""
        path = self.store.image(self.points[-1], "vda")
        assert same_content(self.image, "qcow2", path, "qcow2")
        digests = self.store.digest_path(self.points[-1], "vda")
        assert checksum(digests) == checksum(self.copy_of(self.points[-1]))
        with served(self.directory, path) as where, DigestReader(digests) as reader:
            outcome = verify_disk(Context(), where, reader, Meter(), Pass())
        assert (outcome.position, outcome.bad) == (SIZE, ())


def transferred(attempt: Attempt, relay: Relay, target: Target, where: NbdSource, connections: int = 2) -> Counters:
    """A transfer that succeeds."""
    receipt = attempt.receive(target)
    sender = attempt.sender(where, connections).start(relay.address(receipt.ticket))
    assert sender.side.end() is None
    assert receipt.side.end() is None
    return sender.side.meter.sums()
