"""Two sides of a transfer in one process: what arrives, what happens when either side or the link fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.mover.mover_lab import RawLayer, add_bitmap, io, make_image, same_content, served, write
from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, Refused, TransferError, UnderstudyError
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, ReadSpec, SendDisk
from understudy.mover.digest import DigestReader
from understudy.mover.frames import Frame, FrameType
from understudy.mover.meter import Meter
from understudy.mover.receive import Receiving, receive_disk
from understudy.mover.send import send_disk
from understudy.mover.wire import Connection
from understudy.storage import Buffer
from understudy.units import KIB, MIB

SIZE = 10 * MIB + 512


@dataclass
class Side:
    """One side's end."""

    ctx: Context = field(default_factory=Context)
    meter: Meter = field(default_factory=Meter)
    error: BaseException | None = None


@dataclass
class Transfer:
    """A transfer in this process; both errors are kept."""

    directory: Path
    where: NbdSource
    layer: RawLayer
    mode: TransferMode = TransferMode.FULL
    chained: bool = False
    source_base: Path | None = None
    target_base: Path | None = None
    size: int = SIZE
    ticket: str = "secret"
    base_point_there: str = "p"
    compression: Compression = Compression.ZSTD
    via: Callable[[Path], Path] = lambda path: path
    source: Side = field(default_factory=Side)
    target: Side = field(default_factory=Side)

    def run(self) -> Transfer:
        path = self.directory / "rx"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            receiving = Receiving(
                "secret", "p", "vda", self.size, MIB, self.chained, self.base_point_there if self.chained else "",
                self.target_base, self.directory / "target.digest", self.layer,
            )
            thread = threading.Thread(target=self._receive, args=(listener, receiving))
            thread.start()
            try:
                self._send(self.via(path))
            finally:
                if self.ticket != "secret":
                    self.target.ctx.cancel.cancel()
                thread.join(60)
        assert not thread.is_alive()
        return self

    def _receive(self, listener: socket.socket, receiving: Receiving) -> None:
        try:
            receive_disk(self.target.ctx, listener, receiving, self.target.meter)
        except UnderstudyError as exc:
            self.target.error = exc

    def _send(self, path: Path) -> None:
        base_point = "p" if self.chained and self.source_base else ""
        read = ReadSpec(self.where, "vda", self.size, self.mode, MIB, self.chained, "r", base_point, "p")
        base = DigestReader(self.source_base) if self.source_base else None
        try:
            request = SendDisk(read, str(path), self.ticket, self.compression)
            send_disk(self.source.ctx, request, base, self.directory / "source.digest", self.source.meter)
        except UnderstudyError as exc:
            self.source.error = exc
        finally:
            if base is not None:
                base.close()

    def errors(self) -> tuple[BaseException | None, BaseException | None]:
        return self.source.error, self.target.error


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = make_image(tmp_path / "source.qcow2", SIZE)
    write(path, 1, (0, 4 * MIB), (6 * MIB, 2 * MIB), (SIZE - 512, 512))
    return path


@pytest.fixture
def where(tmp_path: Path, image: Path) -> Iterator[NbdSource]:
    with served(tmp_path, image) as source:
        yield source


def same_digests(left: Path, right: Path) -> bool:
    """Whether two digest files have the same array."""
    with DigestReader(left) as one, DigestReader(right) as other:
        return one.header.checksum == other.header.checksum


def second_run(tmp_path: Path, image: Path, change: Callable[[Path, Path], None]) -> Transfer:
    """An incremental on a full copy; ``change`` may do something to the two base digest files."""
    with served(tmp_path, image) as where:
        before = Transfer(tmp_path, where, RawLayer(tmp_path / "base.raw", SIZE)).run()
        assert before.errors() == (None, None)
    bases = tmp_path / "source.base", tmp_path / "target.base"
    (tmp_path / "source.digest").rename(bases[0])
    (tmp_path / "target.digest").rename(bases[1])
    change(*bases)
    add_bitmap(image, "b")
    write(image, 2, (MIB, 10), (9 * MIB, MIB))
    io(image, "write -z -u 2M 1M")
    layer = RawLayer(tmp_path / "next.raw", SIZE, before.layer.path.read_bytes())
    with served(tmp_path, image, bitmap="b") as where:
        return Transfer(tmp_path, where, layer, TransferMode.INCREMENTAL, True, *bases).run()


def test_both_sides_end_with_the_same_bytes_and_digests(tmp_path: Path, image: Path, where: NbdSource) -> None:
    done = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", SIZE)).run()
    assert done.errors() == (None, None)
    assert done.layer.finished
    assert same_content(image, "qcow2", done.layer.path, "raw")
    assert same_digests(tmp_path / "source.digest", tmp_path / "target.digest")
    assert done.source.meter.sums().sent == done.target.meter.sums().sent == done.layer.written
    assert done.source.meter.sums().wire > 0


def test_an_incremental_sends_few_digests(tmp_path: Path, image: Path) -> None:
    done = second_run(tmp_path, image, lambda source, target: None)
    assert done.errors() == (None, None)
    assert same_content(image, "qcow2", done.layer.path, "raw")
    assert same_digests(tmp_path / "source.digest", tmp_path / "target.digest")


@pytest.mark.parametrize("act", ["lost", "damaged"])
def test_digests_lost_at_the_target_are_healed(tmp_path: Path, image: Path, act: str) -> None:
    def change(_source: Path, target: Path) -> None:
        if act == "lost":
            target.unlink()
        else:
            with target.open("r+b") as file:
                file.seek(4096)
                file.write(b"x")

    done = second_run(tmp_path, image, change)
    assert done.errors() == (None, None)
    assert same_content(image, "qcow2", done.layer.path, "raw")
    assert same_digests(tmp_path / "source.digest", tmp_path / "target.digest")


def test_a_frame_that_is_lost_without_a_trace_is_noticed(
    tmp_path: Path, where: NbdSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = Connection.send, list[Frame]()

    def lossy(self: Connection, frame: Frame, *more: Any) -> None:
        if frame.type is FrameType.DATA and not lost:
            lost.append(frame)
        else:
            send(self, frame, *more)

    monkeypatch.setattr(Connection, "send", lossy)
    done = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", SIZE)).run()
    for error in done.errors():
        assert isinstance(error, TransferError)
        assert "totals do not match" in str(error)
    assert not done.layer.finished


def test_a_layer_on_another_point_is_refused(tmp_path: Path, image: Path, where: NbdSource) -> None:
    first = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", SIZE)).run()
    (tmp_path / "source.digest").rename(tmp_path / "base")
    layer = RawLayer(tmp_path / "next", SIZE, first.layer.path.read_bytes())
    done = replace(first, layer=layer, mode=TransferMode.DIGEST_SCAN, chained=True, source_base=tmp_path / "base",
                   base_point_there="other", source=Side(), target=Side()).run()
    for error in done.errors():
        assert isinstance(error, Refused)
        assert "base_point" in str(error)
    assert layer.calls == []


class FailingLayer(RawLayer):
    """A layer whose datastore is full after a while."""

    def write_at(self, offset: int, data: Buffer) -> None:
        if offset >= MIB:
            raise DatastoreError("write layer", "No space left on device", "make room")
        super().write_at(offset, data)


class UnfinishableLayer(RawLayer):
    """A layer that cannot be made durable."""

    def finish(self) -> None:
        raise DatastoreError("finish layer", "Input/output error")


@pytest.mark.parametrize("layer_type", [FailingLayer, UnfinishableLayer])
def test_a_failing_target_is_named_on_both_sides(tmp_path: Path, layer_type: type[RawLayer]) -> None:
    size = 64 * MIB
    image = make_image(tmp_path / "big.qcow2", size)
    write(image, 1, (0, size))
    with served(tmp_path, image) as where:
        layer = layer_type(tmp_path / "layer", size)
        done = Transfer(tmp_path, where, layer, size=size, compression=Compression.NONE).run()
    for error in done.errors():
        assert isinstance(error, DatastoreError), error
    assert not layer.finished


def test_a_wrong_ticket_gets_nowhere(tmp_path: Path, where: NbdSource) -> None:
    done = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", SIZE), ticket="guess").run()
    assert isinstance(done.source.error, TransferError)
    assert isinstance(done.target.error, Cancelled)
    assert done.layer.calls == []


@pytest.mark.parametrize("after", [60, 3000, MIB, 5 * MIB, 6 * MIB + 500])
def test_a_cut_link_fails_both_sides(tmp_path: Path, image: Path, where: NbdSource, after: int) -> None:
    with cutting_relay(tmp_path / "relay", after) as via:
        done = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", SIZE), compression=Compression.NONE, via=via)
        if after == 60:
            # Cut inside the hello: the target goes on waiting for a real source side.
            threading.Timer(1.0, done.target.ctx.cancel.cancel).start()
        done.run()
    assert isinstance(done.source.error, TransferError), done.source.error
    assert isinstance(done.target.error, Cancelled if after == 60 else TransferError), done.target.error
    assert not done.layer.finished


@contextmanager
def cutting_relay(path: Path, after: int) -> Iterator[Callable[[Path], Path]]:
    """A relay that forwards ``after`` bytes towards the target, then cuts both links."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    threads: list[threading.Thread] = []

    def start(target: Path) -> Path:
        threads.append(threading.Thread(target=relay, args=(target,)))
        threads[0].start()
        return path

    def relay(target: Path) -> None:
        near, _ = listener.accept()
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(str(target))
            back = threading.Thread(target=answers, args=(far, near))
            back.start()
            left = after
            while left and (chunk := near.recv(min(left, 65536))):
                far.sendall(chunk)
                left -= len(chunk)
            far.shutdown(socket.SHUT_RDWR)
            near.shutdown(socket.SHUT_RDWR)
            back.join()

    def answers(far: socket.socket, near: socket.socket) -> None:
        try:
            while chunk := far.recv(65536):
                near.sendall(chunk)
        except OSError:
            return

    try:
        yield start
    finally:
        for thread in threads:
            thread.join()
        listener.close()


class StuckLayer(RawLayer):
    """A layer whose writes hang until released."""

    release = threading.Event()

    def write_at(self, offset: int, data: Buffer) -> None:
        self.release.wait(30)
        super().write_at(offset, data)


@pytest.mark.parametrize("who", ["source", "target"])
def test_a_cancel_ends_both_sides(tmp_path: Path, who: str) -> None:
    size = 64 * MIB
    image = make_image(tmp_path / "big.qcow2", size)
    write(image, 1, (0, size))
    StuckLayer.release.clear()
    with served(tmp_path, image) as where:
        done = Transfer(tmp_path, where, StuckLayer(tmp_path / "layer", size), size=size, compression=Compression.NONE)
        side = done.source if who == "source" else done.target

        def cancel() -> None:
            time.sleep(0.5)
            side.ctx.cancel.cancel()
            time.sleep(0.5)
            StuckLayer.release.set()

        thread = threading.Thread(target=cancel)
        thread.start()
        done.run()
        thread.join()
    assert isinstance(side.error, Cancelled)
    assert all(error is not None for error in done.errors())
    assert not done.layer.finished


def test_digest_frames_reach_the_last_block(tmp_path: Path) -> None:
    size = 5000 * MIB + 4 * KIB
    image = make_image(tmp_path / "long.qcow2", size)
    write(image, 1, (0, 10), (4097 * MIB, 10), (size - 4 * KIB, 4 * KIB))
    with served(tmp_path, image) as where:
        done = Transfer(tmp_path, where, RawLayer(tmp_path / "layer", 0), size=size)
        done.layer.size = size
        done.layer.path.touch()
        done.run()
    assert done.errors() == (None, None)
    assert same_content(image, "qcow2", done.layer.path, "raw")
    assert same_digests(tmp_path / "source.digest", tmp_path / "target.digest")
