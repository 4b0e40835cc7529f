"""Both sides of a transfer in one process, and what can be between them: a relay that reads along and cuts."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.context import Context
from understudy.errors import UnderstudyError
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.arriving import Arrival, ArrivingDisk
from understudy.mover.below import Content
from understudy.mover.data_port import DataPort
from understudy.mover.digest import DigestReader
from understudy.mover.frames import (
    HEADER_BYTES,
    Codec,
    Durable,
    Frame,
    FrameType,
    unpack_durable,
)
from understudy.mover.hello import Receiving
from understudy.mover.link import Link
from understudy.mover.meter import Meter
from understudy.mover.receive import Reception
from understudy.mover.send import send_disk
from understudy.mover.throttle import Throttles
from understudy.storage import LayerWriter
from understudy.storage.values import KeptLayer
from understudy.units import KIB, MIB

SIZE = 5 * MIB + 512
BLOCK = 256 * KIB
BLOCKS = 21
HEADER = struct.Struct("<4sBBHQQIIQ")
UNLIMITED = Throttles().lane((), tls=False)


def eventually(condition: Callable[[], bool], what: str = "", timeout_s: float = 20.0) -> None:
    """Wait until ``condition`` holds; else the test fails."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(0.005)


@dataclass
class Side:
    """One side of a transfer, in a thread of its own."""

    ctx: Context = field(default_factory=Context)
    meter: Meter = field(default_factory=Meter)
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def start(self, act: Callable[[], object]) -> None:
        """Begin ``act``."""

        def run() -> None:
            try:
                act()
            except Exception as exc:  # noqa: BLE001 - the test looks at it
                self.error = exc

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self, timeout_s: float = 60.0) -> BaseException | None:
        """Wait for its end; the error."""
        if self.thread is not None:
            self.thread.join(timeout_s)
            assert not self.thread.is_alive(), "it does not end"
        return self.error

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.thread is not None and self.thread.is_alive()


class Target:
    """The target side: a data port, and transfers one after another.

    :param path: of the data port's socket; must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = DataPort()
        self.port.listen_unix(path)

    def receive(
        self, disk: ArrivingDisk, receiving: Receiving, owner: str = "draft", below: Content | None = None
    ) -> Receipt:
        """Begin a transfer."""
        side = Side()
        reception = Reception(receiving, disk, side.meter, below)
        ticket = self.port.admit(owner, reception)
        side.start(lambda: reception.run(side.ctx))
        return Receipt(self, reception, ticket, side, owner)

    def address(self, ticket: str) -> api.TargetAddress:
        """Where a transfer is found."""
        return api.TargetAddress(str(self.path), "", ticket)

    def close(self) -> None:
        """Close the port."""
        self.port.close()
        self.path.unlink()


@dataclass
class Receipt:
    """A transfer at the target side."""

    target: Target
    reception: Reception
    ticket: str
    side: Side
    owner: str

    @property
    def address(self) -> api.TargetAddress:
        """Where it is found."""
        return self.target.address(self.ticket)

    def stop(self) -> None:
        """End it as the end of its draft does."""
        self.side.ctx.cancel.cancel()
        self.side.end()
        self.target.port.withdraw(self.owner)


def receiving(
    *, point: str = "p", size: int = SIZE, block_size: int = BLOCK, chained: bool = False, base_point: str = "",
    base: Path | None = None, identity: str = "", patience_s: float = 20.0,
) -> Receiving:
    """What a target side agrees to."""
    return Receiving(identity, point, "vda", size, block_size, chained, base_point, base, patience_s)


def arriving(
    layer: LayerWriter, digests: Path, *, point: str = "p", size: int = SIZE, block_size: int = BLOCK,
    kept: KeptLayer | None = None,
) -> ArrivingDisk:
    """A disk that comes into ``layer``."""
    return ArrivingDisk(Arrival("vda", point, size, block_size, layer, digests, kept or KeptLayer()))


@dataclass
class Sender:
    """A source side.

    :ivar digests: where its digest file is written.
    """

    where: api.NbdSource
    digests: Path
    mode: TransferMode = TransferMode.FULL
    chained: bool = False
    point: str = "p"
    base_point: str = ""
    base: Path | None = None
    size: int = SIZE
    block_size: int = BLOCK
    connections: int = 2
    compression: Compression = Compression.NONE
    patience_s: float = 20.0
    side: Side = field(default_factory=Side)
    link: Link | None = None

    def start(self, target: api.TargetAddress) -> Sender:
        """Begin to send."""
        self.link = link = Link(target, None, self.patience_s, self.side.meter)
        read = api.ReadSpec(self.where, "vda", self.size, self.mode, self.block_size, self.chained, "r",
                            self.base_point, self.point)
        request = api.SendDisk(read, target, self.compression, self.connections, self.patience_s)

        def send() -> None:
            base = DigestReader(self.base) if self.base else None
            try:
                send_disk(self.side.ctx, request, base, self.digests, self.side.meter, link, UNLIMITED)
            finally:
                if base is not None:
                    base.close()

        self.side.start(send)
        return self

    def redirect(self, target: api.TargetAddress) -> None:
        """The target side is elsewhere."""
        assert self.link is not None
        self.link.redirect(target)


def brought(sender: Sender) -> int:
    """Bytes that the source side knows to be durable at the target; zeros do not count."""
    sums = sender.side.meter.sums()
    return sums.processed - sums.zero


@dataclass
class Passage:
    """One connection through a relay, and what went over it.

    :ivar there: frames towards the target that were passed on whole; ``back``: the others.
    :ivar ended: it was cut, or either side closed it.
    """

    hello: dict[str, Any]
    there: list[Frame] = field(default_factory=list)
    back: list[tuple[Frame, bytes]] = field(default_factory=list)
    ended: bool = False
    sockets: tuple[socket.socket, ...] = ()

    @property
    def role(self) -> str:
        """``answers`` or ``data``."""
        return str(self.hello.get("role", ""))

    def cut(self) -> None:
        """End it for both sides."""
        self.ended = True
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def count(self, frame_type: FrameType) -> int:
        """Frames of that type that reached the target."""
        return sum(frame.type is frame_type for frame in self.there)


#: Swallow the frame, and go on.
DROP = -1

Watch = Callable[["Relay", Passage, Frame, bytes], "int | None"]


def all_of_it(_relay: Relay, _passage: Passage, _frame: Frame, _payload: bytes) -> int | None:
    """Let everything pass."""
    return None


class Relay:
    """Between the sides, at a Unix socket; plain frames, so it can read along.

    :ivar watch_there, watch_back: called with each frame before it is passed on; returns how many of its bytes to pass
        on before both ends are cut, None for all of them and no cut, or :data:`DROP`.
    :ivar down: connections are closed at once.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.target = target
        self.watch_there: Watch = all_of_it
        self.watch_back: Watch = all_of_it
        self.down = False
        self.passages: list[Passage] = []
        self.passed = 0
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def address(self, ticket: str) -> api.TargetAddress:
        """A transfer, by way of this relay."""
        return api.TargetAddress(str(self.path), "", ticket)

    def close(self) -> None:
        """Cut everything and end."""
        self._closed = self.down = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        self._listener.close()

    def cut(self, role: str = "") -> None:
        """Cut all connections, or those of a role."""
        for passage in list(self.passages):
            if role in ("", passage.role):
                passage.cut()

    def of(self, role: str) -> list[Passage]:
        """The connections of a role, in the order in which they were made."""
        return [passage for passage in self.passages if passage.role == role]

    def times_sent(self, block_size: int = BLOCK) -> dict[int, int]:
        """How often data of each block reached the target."""
        counts: dict[int, int] = {}
        for passage in self.of("data"):
            for index in {frame.offset // block_size for frame in passage.there if frame.type is FrameType.DATA}:
                counts[index] = counts.get(index, 0) + 1
        return counts

    def acknowledged(self, block_size: int = BLOCK) -> set[int]:
        """Blocks whose digests, and so whose data, the target has acknowledged to the source side."""
        told: list[Durable] = []
        for passage in self.of("answers"):
            for frame, payload in passage.back:
                if frame.type is FrameType.ACKNOWLEDGE:
                    told += unpack_durable(payload)
        found: set[int] = set()
        for passage in self.of("data"):
            frames = max((state.frames for state in told if (state.slot, state.epoch) ==
                          (passage.hello["slot"], passage.hello["epoch"])), default=0)
            found |= {frame.offset // block_size for frame in passage.there
                      if frame.type is FrameType.DIGEST and frame.number < frames}
        return found

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                near.close()
                continue
            thread = threading.Thread(target=self._serve, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        passage = Passage({}, sockets=(near, far))
        with near, far:
            try:
                far.connect(str(self.target))
            except OSError:
                return
            self.passages.append(passage)
            if self.down:  # since it was accepted
                passage.cut()
            back = threading.Thread(target=self._pass_on, args=(passage, far, near, self._back))
            back.start()
            self._pass_on(passage, near, far, self._there)
            back.join()

    def _there(self, passage: Passage, frame: Frame, payload: bytes) -> int | None:
        if frame.type is FrameType.HELLO:
            passage.hello = json.loads(payload)
        return self.watch_there(self, passage, frame, payload)

    def _back(self, passage: Passage, frame: Frame, payload: bytes) -> int | None:
        return self.watch_back(self, passage, frame, payload)

    def _pass_on(
        self, passage: Passage, source: socket.socket, sink: socket.socket,
        ask: Callable[[Passage, Frame, bytes], int | None],
    ) -> None:
        try:
            while not passage.ended:
                header = _exactly(source, HEADER_BYTES)
                frame = parse(header)
                payload = _exactly(source, frame.wire_length)
                allowed = ask(passage, frame, payload)
                if allowed == DROP:
                    continue
                sink.sendall((header + payload)[:allowed])
                self.passed += len(header) + len(payload)
                if allowed is not None:
                    break
                if ask == self._there:
                    passage.there.append(frame)
                else:
                    passage.back.append((frame, payload))
        except OSError:
            pass
        finally:
            passage.cut()


def parse(header: bytes) -> Frame:
    """A header, as it stands."""
    _, kind, codec, _, offset, raw_length, wire_length, number, total = HEADER.unpack(header)
    return Frame(FrameType(kind), Codec(codec), offset, raw_length, wire_length, number, total)


def _exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = sock.recv(count - len(found))
        if not more:
            raise ConnectionError
        found += more
    return found


@contextmanager
def relayed(path: Path, target: Target) -> Iterator[Relay]:
    """A relay before the target, inside the context."""
    relay = Relay(path, target.path)
    try:
        yield relay
    finally:
        relay.close()


def checksum(path: Path) -> int:
    """The checksum of a complete digest file."""
    with DigestReader(path) as reader:
        return reader.header.checksum


def assert_error(found: BaseException | None, kind: type[UnderstudyError], text: str) -> None:
    """The error is of that kind and says ``text``."""
    assert isinstance(found, kind), found
    assert text in str(found)
