"""A digest scan between two sides in one process, over a base whose content can be held back, broken or changed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.unit.mover.mover_lab import RawLayer, run, same_content, served
from tests.unit.mover.wire_lab import BLOCK, SIZE, Receipt, Relay, Sender, Target, arriving, checksum, receiving
from understudy.model.extent import PART
from understudy.model.transfer import TransferMode
from understudy.mover.frames import FrameType
from understudy.mover.meter import Counters


class Base:
    """What a layer lies on: content of a :class:`understudy.mover.below.Content`.

    :ivar reads: where it was read.
    :ivar readable: reads succeed.
    :ivar open: reads go on; else they wait, and ``waits`` is set.
    """

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.reads: list[int] = []
        self.readable = True
        self.open = threading.Event()
        self.open.set()
        self.waits = threading.Event()
        self.stopped = False

    def read(self, offset: int, view: memoryview) -> bool:
        """Read."""
        self.reads.append(offset)
        if not self.open.is_set():
            self.waits.set()
            assert self.open.wait(20)
        if self.stopped or not self.readable:
            return False
        view[:] = self.content[offset : offset + len(view)].ljust(len(view), b"\0")
        return True

    def stop(self) -> None:
        """End every wait."""
        self.stopped = True
        self.open.set()


class Scan:
    """A source disk of random bytes without zeros, replicated once, and the digest scan that follows.

    :ivar knows_base: the target can read what the layer lies on.
    """

    def __init__(self, directory: Path, target: Target, *, size: int = SIZE, block_size: int = BLOCK) -> None:
        self.directory = directory
        self.target = target
        self.size, self.block_size = size, block_size
        self.content = bytearray(random.Random(size).randbytes(size))
        self.image = directory / "disk.raw"
        self.layer = RawLayer(directory / "next.raw", size)
        self.mode = TransferMode.DIGEST_SCAN
        self.knows_base = True
        self.receipt: Receipt | None = None
        self.sender: Sender | None = None

    def change(self, *parts: int, length: int = 1) -> None:
        """Change a few bytes in the middle of each of these 64 KiB parts of the disk."""
        for part in parts:
            start = min(part * PART + PART // 2, self.size - length)
            for position in range(start, start + length):
                self.content[position] ^= 0x55

    def replicated(self) -> Base:
        """Copy everything; what lies below the next layer."""
        base = RawLayer(self.directory / "base.raw", self.size)
        there = arriving(base, self.directory / "base.target", size=self.size, block_size=self.block_size)
        receipt = self.target.receive(there, receiving(size=self.size, block_size=self.block_size), "base")
        with self._source() as sender:
            sender.mode, sender.chained, sender.digests = TransferMode.FULL, False, self.directory / "base.source"
            sender.start(receipt.address)
            assert (sender.side.end(), receipt.side.end()) == (None, None)
        receipt.stop()
        return Base(base.path.read_bytes())

    @contextmanager
    def _source(self) -> Iterator[Sender]:
        self.image.write_bytes(self.content)
        run("qemu-img", "resize", "-q", "-f", "raw", self.image, str(self.size))
        with served(self.directory, self.image, "raw") as where:
            yield Sender(where, self.directory / "next.source", self.mode, chained=True, size=self.size,
                         block_size=self.block_size)

    @contextmanager
    def scanning(self, base: Base, relay: Relay | None = None, connections: int = 2) -> Iterator[Sender]:
        """The scan runs inside the context; both sides end with it."""
        self.layer = RawLayer(self.directory / "next.raw", self.size, bytes(base.content))
        there = arriving(self.layer, self.directory / "next.target", point="q", size=self.size,
                         block_size=self.block_size)
        terms = receiving(point="q", size=self.size, block_size=self.block_size, chained=True, base_point="p",
                          base=self.directory / "base.target")
        with ExitStack() as stack:
            known = base if self.knows_base else None
            self.receipt = receipt = self.target.receive(there, terms, "next", known)
            stack.callback(receipt.stop)
            stack.callback(base.open.set)
            self.sender = sender = stack.enter_context(self._source())
            sender.point, sender.base_point, sender.base = "q", "p", self.directory / "base.source"
            sender.connections = connections
            address = relay.address(receipt.ticket) if relay is not None else receipt.address
            stack.callback(sender.side.end)
            stack.callback(sender.side.ctx.cancel.cancel)
            yield sender.start(address)

    def check(self) -> Counters:
        """It went well; what the source side counted."""
        assert self.sender is not None
        assert self.receipt is not None
        assert (self.sender.side.end(), self.receipt.side.end()) == (None, None)
        assert self.layer.finished
        assert same_content(self.image, "raw", self.layer.path, "raw")
        assert checksum(self.directory / "next.source") == checksum(self.directory / "next.target")
        sums = self.sender.side.meter.sums()
        assert sums.processed == self.size
        return sums

    def written(self) -> list[int]:
        """The parts of the disk to which data was written, in order; each as often as it was."""
        return sorted(part for act, offset, length in self.layer.calls if act == "write"
                      for part in range(offset // PART, -(-(offset + length) // PART)))


def asked(relay: Relay) -> list[int]:
    """Offsets of the blocks about which questions reached the target."""
    return [frame.offset for passage in relay.of("data") for frame in passage.there if frame.type is FrameType.ASK]


def answered(relay: Relay) -> list[int]:
    """Offsets of the blocks about which answers reached the source side."""
    return [frame.offset for passage in relay.of("answers") for frame, _ in passage.back
            if frame.type is FrameType.DIFFER]
