"""What a layer lies on is read when it is needed, and a base that cannot be read never stops a transfer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import RawLayer, make_image, write
from tests.unit.mover.wire_lab import SIZE, arriving, eventually
from understudy.errors import PlatformError
from understudy.model.extent import PART, Extent
from understudy.mover import below as below_module
from understudy.mover.answering import MOST_WAITING, Answering, Ask
from understudy.mover.api import NbdSource, OpenExport
from understudy.mover.below import MOST_FAILURES, Below
from understudy.mover.copier import DiskSink
from understudy.mover.exports import Exports
from understudy.mover.frames import Geometry
from understudy.mover.meter import Counters
from understudy.mover.plan import Plan, ReadBlock
from understudy.units import KIB, MIB


class Server:
    """Serves an image; counts how often."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.exports = Exports(directory)
        self.image = image
        self.times = 0

    @contextmanager
    def __call__(self) -> Iterator[NbdSource]:
        self.times += 1
        key, source = self.exports.open(OpenExport(str(self.image), "qcow2", "", "test"))
        try:
            yield source
        finally:
            self.exports.close(key)

    def kill(self) -> None:
        """Kill the server."""
        for child in self.exports._children.values():
            child.process.kill()
            child.process.wait()

    @property
    def running(self) -> int:
        """How many serve."""
        return len(self.exports._children)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    image = make_image(tmp_path / "base.qcow2", SIZE)
    write(image, 1, (0, SIZE))
    made = Server(tmp_path, image)
    yield made
    made.exports.close_all()


def filled(length: int) -> memoryview:
    return memoryview(bytearray(b"?" * length))


def test_nothing_is_opened_before_it_is_read_and_nothing_stays_open(server: Server) -> None:
    with Below(server) as below:
        assert server.times == 0
        one, other = filled(MIB), filled(MIB)
        assert below.read(0, one)
        assert below.read(0, other)
        assert bytes(one) == bytes(other) != b"?" * MIB
        assert (server.times, server.running) == (1, 1)
    assert server.running == 0
    assert not below.read(0, one)
    assert server.times == 1


@pytest.mark.parametrize("start", [SIZE - 512, SIZE - 512 - 64 * KIB, SIZE, SIZE + MIB])
def test_behind_its_end_a_base_shows_zeros(server: Server, start: int) -> None:
    """The disk has grown since."""
    with Below(server) as below:
        view = filled(MIB)
        assert below.read(start, view)
        known = max(0, SIZE - start)
        assert bytes(view[known:]) == bytes(MIB - known)
        assert b"????" not in bytes(view[:known])


def test_a_server_that_is_killed_is_started_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Below(server) as below:
        one, other = filled(MIB), filled(MIB)
        assert below.read(0, one)
        server.kill()
        assert not below.read(0, other)
        assert "whole blocks are written instead" in caplog.text
        assert below.read(0, other)
        assert bytes(one) == bytes(other)
    assert server.times == 2
    assert server.running == 0


def test_a_base_that_fails_again_and_again_is_left_alone(server: Server) -> None:
    with Below(server) as below:
        for _ in range(MOST_FAILURES):
            server.kill()
            below.read(0, filled(MIB))
            server.kill()
            assert not below.read(0, filled(MIB))
        assert server.times <= MOST_FAILURES + 1
        before = server.times
        assert not below.read(0, filled(MIB))
        assert server.times == before


def test_a_base_that_cannot_be_served_is_tried_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    def refuse() -> AbstractContextManager[NbdSource]:
        tries.append(1)
        raise PlatformError("export base", "No such file or directory")

    with Below(refuse) as below:
        assert not below.read(0, filled(MIB))
        assert not below.read(0, filled(MIB))
    assert len(tries) == 1
    assert caplog.text.count("No such file or directory") == 1


def test_a_server_that_does_not_answer_is_waited_for_until_the_end_and_not_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.nbd import NbdClient

    monkeypatch.setattr(NbdClient, "finished", lambda *_: False)
    monkeypatch.setattr(below_module, "READ_TIMEOUT_S", 0.3)
    with Below(server) as below:
        assert not below.read(0, filled(MIB))
        monkeypatch.setattr(below_module, "READ_TIMEOUT_S", 600.0)
        reader = threading.Thread(target=below.read, args=(0, filled(MIB)))
        reader.start()
        eventually(lambda: server.times == 2)
        started = time.monotonic()
        below.stop()
        reader.join(10)
        assert not reader.is_alive()
        assert time.monotonic() - started < 5


# --- compared in one mover --------------------------------------------------------------------------------------------


class Unread(Plan):
    """A plan of which only the block size matters."""

    def __init__(self) -> None:
        self.block_size = MIB


def test_in_one_mover_the_bytes_are_compared(tmp_path: Path, server: Server) -> None:
    disk = arriving(RawLayer(tmp_path / "layer", SIZE), tmp_path / "digests", block_size=MIB)
    with Below(server) as below:
        sink = DiskSink(disk, Unread(), Counters(), below)
        content = filled(MIB)
        assert below.read(MIB, content)
        content[3 * PART + 5] ^= 1
        content[15 * PART] ^= 1
        block = Extent(MIB, MIB)
        item = ReadBlock(block, 1, (block,), vague=True)
        expected = (Extent(MIB + 3 * PART, PART), Extent(MIB + 15 * PART, PART))
        assert sink.narrow(item, content).wanted == expected
        tail = Extent(5 * MIB, 512)
        assert sink.narrow(ReadBlock(tail, 5, (tail,), vague=True), filled(512)).wanted == (tail,)
    assert sink.narrow(item, content) == item
    assert DiskSink(disk, Unread(), Counters()).narrow(item, content) == item
    disk.close()


# --- the thread that answers ------------------------------------------------------------------------------------------


def test_who_asks_too_much_waits_until_the_end() -> None:
    """Nothing grows without a limit, whoever asks."""
    held = threading.Event()

    class Stuck:
        """A base that is not read to its end."""

        def read(self, _offset: int, _view: memoryview) -> bool:
            assert held.wait(30)
            return False

        def stop(self) -> None:
            held.set()

    said: list[int] = []
    answering = Answering(Geometry(SIZE, 256 * KIB), Stuck(), lambda ask, _: said.append(ask.offset), lambda _: None)

    def flood() -> None:
        for _ in range(2 * MOST_WAITING):
            answering.put(Ask("me", 0, bytes(64)))

    flooder = threading.Thread(target=flood)
    flooder.start()
    eventually(lambda: len(answering._asks) == MOST_WAITING)
    time.sleep(0.1)
    assert len(answering._asks) == MOST_WAITING
    answering.end()
    flooder.join(10)
    assert not flooder.is_alive()
    assert len(said) <= 1
    answering.put(Ask("me", 0, bytes(64)))
    answering.end()
