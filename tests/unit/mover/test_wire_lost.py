"""Connections that are lost: the transfer goes on, nothing acknowledged travels again, and patience has an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.mover.mover_lab import RawLayer, same_content
from tests.unit.mover.wire_lab import (
    BLOCK,
    DROP,
    HEADER,
    SIZE,
    Passage,
    Receipt,
    Relay,
    Sender,
    Target,
    all_of_it,
    arriving,
    assert_error,
    brought,
    checksum,
    eventually,
    receiving,
)
from understudy.errors import Cancelled, LinkLost
from understudy.mover import link, outgoing
from understudy.mover.api import NbdSource
from understudy.mover.frames import Frame, FrameType, unpack_durable
from understudy.mover.lanes import Lane
from understudy.mover.plan import Conclusion
from understudy.storage import Buffer

CONTENT = {FrameType.DATA, FrameType.ZERO, FrameType.DIGEST, FrameType.END}


class Case:
    """A full copy through a relay."""

    def __init__(self, directory: Path, target: Target, relay: Relay, image: Path, where: NbdSource) -> None:
        self.relay = relay
        self.target = target
        self.image = image
        self.layer = RawLayer(directory / "layer", SIZE)
        self.here = directory / "target.digest"
        self.sender = Sender(where, directory / "source.digest")
        self.arriving = arriving(self.layer, self.here)
        self.receipt = target.receive(self.arriving, receiving())

    def start(self, connections: int = 2) -> Case:
        self.sender.connections = connections
        self.sender.start(self.relay.address(self.receipt.ticket))
        return self

    def check(self) -> None:
        """It went well, in spite of all."""
        assert self.sender.side.end() is None
        assert self.receipt.side.end() is None
        self.receipt.stop()
        assert self.layer.finished
        assert same_content(self.image, "qcow2", self.layer.path, "raw")
        assert checksum(self.sender.digests) == checksum(self.here)
        assert self.sender.side.meter.sums().processed == SIZE

    def frames_back(self, frame_type: FrameType) -> int:
        return sum(frame.type is frame_type for passage in self.relay.of("answers") for frame, _ in passage.back)


@pytest.fixture
def case(tmp_path: Path, target: Target, relay: Relay, disk_image: Path, disk: NbdSource) -> Case:
    return Case(tmp_path, target, relay, disk_image, disk)


def cut_after(limits: list[int]) -> Callable[[Relay, Passage, Frame, bytes], int | None]:
    """Cut everything when so many bytes passed towards the target, in the middle of a frame; for each limit once."""
    lock = threading.Lock()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        with lock:
            length = 40 + frame.wire_length
            if not limits or relay.passed + length <= limits[0]:
                return None
            allowed = max(0, limits.pop(0) - relay.passed)
            relay.passed = 0
        relay.cut()
        return allowed

    return watch


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("after", [0, 10, 60, 700, 1500, 100_000, 300_000, 1_000_000, 2_000_000, 2_700_000])
def test_a_cut_of_every_connection_is_survived(case: Case, connections: int, after: int) -> None:
    case.relay.watch_there = cut_after([after])
    case.start(connections).check()


@pytest.mark.parametrize("connections", [1, 4])
def test_many_cuts_in_a_row_are_survived(case: Case, connections: int) -> None:
    limits = [400_000, 50, 300_000, 1000, 0, 600_000, 262_244, 700_000]
    case.relay.watch_there = cut_after(limits)
    case.start(connections).check()
    assert not limits
    assert case.sender.side.meter.sums().reconnects >= 3


def acknowledged_when(case: Case, blocks: int, act: Callable[[], None]) -> None:
    """Hold data up once ``blocks`` blocks went until all of these are acknowledged, and known to be; then ``act``."""
    happened = threading.Event()
    lock = threading.Lock()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is not FrameType.DATA or happened.is_set():
            return None
        with lock:
            if happened.is_set() or len(relay.times_sent()) < blocks:
                return None
            eventually(lambda: len(relay.acknowledged()) >= blocks, f"acknowledgement of {blocks} blocks")
            eventually(lambda: brought(case.sender) >= blocks * BLOCK, "its arrival")
            happened.set()
            act()
        return 0

    case.relay.watch_there = watch


def test_acknowledged_blocks_are_not_sent_again(case: Case) -> None:
    before: set[int] = set()

    def cut() -> None:
        before.update(case.relay.acknowledged())
        case.relay.cut()

    acknowledged_when(case, 5, cut)
    case.start(1).check()
    assert len(before) == 5
    assert {index: case.relay.times_sent()[index] for index in before} == dict.fromkeys(before, 1)
    assert case.sender.side.meter.sums().reconnects == 1
    assert len(case.relay.of("data")) == 2


def test_what_was_not_acknowledged_is_sent_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target writes it, and is cut off before it says so."""
    case.relay.watch_back = lambda relay, passage, frame, payload: 0 if frame.type is FrameType.ACKNOWLEDGE else None
    written = threading.Event()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.times_sent()) >= 4 and not written.is_set():
            eventually(lambda: case.layer.written >= 4 * BLOCK)
            written.set()
            relay.watch_back = lambda *_: None
            relay.cut()
            return 0
        return None

    case.relay.watch_there = watch
    case.start(1).check()
    assert sorted(case.relay.times_sent().values())[-4:] == [2, 2, 2, 2]


def test_a_late_acknowledgement_is_for_no_other_connection(case: Case) -> None:
    """It was for frames of the first connection; the second has frames of the same numbers, which went astray."""
    told, release = threading.Event(), threading.Event()
    swallowed: list[Frame] = []

    def back(_relay: Relay, _passage: Passage, frame: Frame, payload: bytes) -> int | None:
        if frame.type is FrameType.ACKNOWLEDGE and unpack_durable(payload)[0].frames >= 9:
            told.set()
            release.wait(20)
        return 0 if frame.type is FrameType.ACKNOWLEDGE and not told.is_set() else None

    def there(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type not in (FrameType.DATA, FrameType.DIGEST, FrameType.SETTLED):
            return None
        if passage is not relay.of("data")[0]:
            swallowed.extend([frame] if frame.type is not FrameType.SETTLED else [])
            return DROP
        if len(relay.times_sent()) < 4 or frame.type is FrameType.DIGEST:
            return None
        assert told.wait(20)
        return 0

    case.relay.watch_there, case.relay.watch_back = there, back
    case.start(1)
    eventually(lambda: len(swallowed) == 2 * 12, "all blocks, again")
    release.set()
    eventually(lambda: case.frames_back(FrameType.ACKNOWLEDGE) > 0, "the late acknowledgement")
    time.sleep(0.1)
    # The other nine blocks are zero and left out.
    assert case.sender.side.meter.sums().processed == 9 * BLOCK
    case.relay.watch_there = case.relay.watch_back = all_of_it
    case.relay.cut("data")
    case.check()


def test_the_last_acknowledgement_may_come_before_the_lane_has_noted_the_end(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else comes after it: nobody may wait for more."""
    note = Lane._note

    def late(lane: Lane, outstanding: Any) -> bool:
        if isinstance(outstanding.item, Conclusion):
            eventually(lambda: lane._durable >= outstanding.frames, "the acknowledgement of the end")
            time.sleep(0.2)  # the listener looks whether all is done, and listens on
        return note(lane, outstanding)

    monkeypatch.setattr(Lane, "_note", late)
    case.start(2).check()


def test_a_cut_of_the_answers_alone_loses_nothing(case: Case) -> None:
    acknowledged_when(case, 4, lambda: case.relay.cut("answers"))
    # The frame that was held up is passed on: the data connection stays as it is.
    held = case.relay.watch_there
    case.relay.watch_there = lambda relay, passage, frame, payload: (held(relay, passage, frame, payload), None)[1]
    case.start(1).check()
    assert len(case.relay.of("answers")) == 2
    assert len(case.relay.of("data")) == 1
    assert set(case.relay.times_sent().values()) == {1}
    assert case.sender.side.meter.sums().reconnects == 0


def test_a_cut_of_one_data_connection_leaves_the_others(case: Case) -> None:
    cut: list[Passage] = []

    def watch(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and not cut:
            eventually(lambda: len(relay.of("data")) >= 3, "the other connections")
            if cut:
                return None
            cut.append(passage)
            return 100
        return None

    case.relay.watch_there = watch
    case.start(3).check()
    assert len(case.relay.of("answers")) == 1
    assert len(cut) == 1
    assert len(case.relay.of("data")) == 4
    assert case.sender.side.meter.sums().reconnects == 1


def test_an_idle_connection_that_is_cut_is_noticed(case: Case) -> None:
    """What is outstanding on it is sent again, though it had nothing more to send."""
    swallowed: dict[int, list[Frame]] = {}

    def swallow(_relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type in (FrameType.DATA, FrameType.DIGEST, FrameType.SETTLED) and passage.hello["slot"] == 0:
            if frame.type is not FrameType.SETTLED:
                swallowed.setdefault(passage.hello["epoch"], []).append(frame)
            return DROP
        return None

    case.relay.watch_there = swallow
    case.start(2)
    eventually(lambda: sum(map(len, swallowed.values())) + sum(
        passage.count(FrameType.DATA) + passage.count(FrameType.DIGEST) for passage in case.relay.of("data")
    ) == 2 * 12, "all frames")
    case.relay.watch_there = all_of_it
    first, = [passage for passage in case.relay.of("data") if passage.hello["slot"] == 0]
    first.cut()
    case.check()
    assert swallowed


@pytest.mark.parametrize("allowed", [0, 20, 48, None])
@pytest.mark.parametrize("role", ["data", "both"])
def test_a_cut_around_the_end_is_survived(case: Case, allowed: int | None, role: str) -> None:
    """The end frame is lost, torn, or arrives and its acknowledgement is late."""
    cut = threading.Event()

    def watch(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is not FrameType.END or cut.is_set():
            return None
        cut.set()
        if role == "both":
            relay.cut("answers")
        if allowed is None:
            passage.sockets[1].sendall(header_of(frame) + _payload)
            eventually(lambda: not case.receipt.side.running, "the target's end")
            return 0
        return allowed

    case.relay.watch_there = watch
    case.start(2).check()
    assert cut.is_set()


def header_of(frame: Frame) -> bytes:
    """The header's bytes, as they came."""
    return HEADER.pack(b"UST2", frame.type, frame.codec, 0, frame.offset, frame.raw_length, frame.wire_length,
                       frame.number, frame.checksum)


@pytest.mark.parametrize("role", ["answers", "both"])
def test_a_cut_around_the_last_acknowledgement_is_survived(case: Case, role: str) -> None:
    cut = threading.Event()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.ACKNOWLEDGE and not case.receipt.side.running and not cut.is_set():
            cut.set()
            if role == "both":
                relay.cut("data")
            return 0
        return None

    def late(relay: Relay, passage: Passage, frame: Frame, payload: bytes) -> int | None:
        if frame.type is FrameType.ACKNOWLEDGE and any(other.count(FrameType.END) for other in relay.of("data")):
            eventually(lambda: not case.receipt.side.running)
        return watch(relay, passage, frame, payload)

    case.relay.watch_back = late
    case.start(2).check()
    assert cut.is_set()


def test_the_end_is_said_again_while_it_is_worked_on(case: Case) -> None:
    """The target takes long to complete the layer; meanwhile the connection on which the end came is lost."""
    finishing, go_on = threading.Event(), threading.Event()
    finish = case.layer.finish

    def slow() -> None:
        finishing.set()
        assert go_on.wait(20)
        finish()

    case.layer.finish = slow  # type: ignore[method-assign]
    case.start(2)
    assert finishing.wait(20)
    case.relay.cut("data")
    eventually(lambda: sum(passage.count(FrameType.END) for passage in case.relay.of("data")) == 2, "the second end")
    go_on.set()
    case.check()


def test_a_target_that_is_silent_and_then_gone_is_survived(case: Case) -> None:
    """Frames vanish for a while, without a reset; then the connections are closed."""
    silent: list[float] = []

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.times_sent()) >= 3 and len(silent) < 2:
            silent.append(time.monotonic())
            time.sleep(0.3)
            relay.cut()
            return 0
        return None

    case.relay.watch_there = watch
    case.start(2).check()


class LateLayer(RawLayer):
    """A layer in which writes that were held up end after others."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)
        self.held = threading.Event()
        self.go_on = threading.Event()

    def write_at(self, offset: int, data: Buffer) -> None:
        if offset == 0 and not self.held.is_set():
            self.held.set()
            assert self.go_on.wait(20)
        super().write_at(offset, data)


def test_a_write_of_a_lost_connection_ends_before_the_layer_does(
    tmp_path: Path, target: Target, relay: Relay, disk_image: Path, disk: NbdSource
) -> None:
    """What came on a lost connection is still being written while the same blocks come again, and then the end."""
    case = Case(tmp_path, target, relay, disk_image, disk)
    case.layer = layer = LateLayer(tmp_path / "late", SIZE)
    case.receipt.stop()
    case.receipt = target.receive(arriving(layer, case.here), receiving())
    case.start(2)
    assert layer.held.wait(20)
    relay.cut("data")
    eventually(lambda: any(passage.count(FrameType.END) for passage in relay.of("data")), "the end")
    time.sleep(0.1)
    assert not layer.finished
    layer.go_on.set()
    case.check()


# --- patience ---------------------------------------------------------------------------------------------------------


def test_a_source_that_loses_the_target_fails_when_its_patience_ends(case: Case) -> None:
    def gone() -> None:
        case.relay.down = True
        case.relay.cut()

    acknowledged_when(case, 2, gone)
    case.sender.patience_s = 1.0
    case.start()
    error = case.sender.side.end(20)
    assert_error(error, LinkLost, "no connection for 1 s")
    assert "no connection" in case.sender.side.meter.progress().waiting
    case.receipt.stop()
    assert not case.layer.finished


def test_a_source_that_never_reached_the_target_fails_sooner(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "FIRST_PATIENCE_S", 0.2)
    case.relay.down = True
    case.sender.patience_s = 600.0
    assert_error(case.start().sender.side.end(5), LinkLost, "no connection for 0 s")
    case.receipt.stop()


def test_connections_that_are_made_but_bring_nothing_are_not_made_for_ever(case: Case) -> None:
    """As a firewall does, or a line on which only small packets pass."""
    case.relay.watch_there = lambda _relay, _passage, frame, _payload: 0 if frame.type in CONTENT else None
    case.sender.patience_s = 1.5
    assert_error(case.start().sender.side.end(20), LinkLost, "nothing has arrived for")
    pauses = case.sender.patience_s / link.RETRY_S
    assert len(case.relay.of("data")) < 2 * pauses + 40, "it must not hammer the target"
    case.receipt.stop()
    assert not case.layer.finished


def test_a_source_that_never_hears_what_is_durable_fails_when_its_patience_ends(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "WINDOW", BLOCK)
    case.relay.watch_back = lambda _relay, _passage, frame, _payload: 0 if frame.type is FrameType.ACKNOWLEDGE else None
    case.sender.patience_s = 1.5
    assert_error(case.start().sender.side.end(20), LinkLost, "nothing has arrived for")
    case.receipt.stop()
    assert not case.layer.finished


def test_a_target_that_is_never_visited_fails_when_its_patience_ends(tmp_path: Path, target: Target) -> None:
    receipt = target.receive(arriving(RawLayer(tmp_path / "l", SIZE), tmp_path / "d"), receiving(patience_s=0.3))
    assert_error(receipt.side.end(5), LinkLost, "was not connected for 0 s")
    receipt.stop()


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_target_whose_source_vanished_fails_when_its_patience_ends(
    tmp_path: Path, target: Target, relay: Relay, disk: NbdSource, how: str
) -> None:
    layer = RawLayer(tmp_path / "l", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "d"), receiving(patience_s=0.5))
    sender = Sender(disk, tmp_path / "source.digest", connections=1)

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.acknowledged()) >= 3 and not relay.down:
            relay.down = True
            if how == "killed":
                sender.side.ctx.cancel.cancel()
            else:
                relay.cut()
        return None

    relay.watch_there = hold_for_acknowledgement(watch, 3)
    sender.start(relay.address(receipt.ticket))
    assert_error(receipt.side.end(10), LinkLost, "was not connected")
    sender.side.ctx.cancel.cancel()
    sender.side.end()
    receipt.stop()


def hold_for_acknowledgement(
    watch: Callable[[Relay, Passage, Frame, bytes], int | None], blocks: int
) -> Callable[[Relay, Passage, Frame, bytes], int | None]:
    """Call ``watch`` only when ``blocks`` blocks are acknowledged."""

    def held(relay: Relay, passage: Passage, frame: Frame, payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.times_sent()) >= blocks:
            eventually(lambda: len(relay.acknowledged()) >= blocks or passage.ended)
        return watch(relay, passage, frame, payload)

    return held


def test_a_connected_source_that_is_slow_tries_nobodys_patience(
    case: Case, tmp_path: Path, target: Target
) -> None:
    case.receipt.stop()
    case.receipt = target.receive(arriving(case.layer, case.here), receiving(patience_s=0.3))

    def slow(_relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and frame.offset in (BLOCK, 4 * BLOCK):
            time.sleep(0.7)
        return None

    case.relay.watch_there = slow
    case.start(1).check()


@pytest.mark.parametrize("when", ["never reached", "lost", "in the claims"])
def test_a_cancel_ends_the_source_while_it_waits_for_the_target(case: Case, when: str) -> None:
    def gone() -> None:
        case.relay.down = True
        case.relay.cut()

    waits = threading.Event()
    if when == "never reached":
        case.relay.down = True
    elif when == "lost":
        acknowledged_when(case, 2, gone)
    else:
        def hold(_relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
            if frame.type is FrameType.SETTLED:
                waits.set()
                eventually(lambda: passage.ended)
            return None

        case.relay.watch_back = hold
    case.start()
    if when == "in the claims":
        assert waits.wait(20)
    else:
        eventually(lambda: "no connection" in case.sender.side.meter.progress().waiting)
    case.sender.side.ctx.cancel.cancel()
    started = time.monotonic()
    assert isinstance(case.sender.side.end(), Cancelled)
    assert time.monotonic() - started < 3
    case.receipt.stop()


def test_a_cancel_ends_a_target_that_waits(tmp_path: Path, target: Target) -> None:
    receipt = target.receive(arriving(RawLayer(tmp_path / "l", SIZE), tmp_path / "d"), receiving(patience_s=600.0))
    started = time.monotonic()
    receipt.stop()
    assert isinstance(receipt.side.error, Cancelled)
    assert time.monotonic() - started < 2


def test_an_unknown_ticket_is_tried_again_until_redirected(
    case: Case, target: Target, tmp_path: Path
) -> None:
    """The target process was started again and has no transfer of that ticket; its controller opens it anew."""
    second: list[Receipt] = []

    def restart() -> None:
        # As when it is killed: nobody says a word.
        case.relay.down = True
        case.relay.cut()
        case.receipt.stop()
        case.relay.down = False

    acknowledged_when(case, 3, restart)
    case.start(2)
    eventually(lambda: "none for this ticket" in case.sender.side.meter.progress().waiting)
    second.append(target.receive(case.arriving, receiving()))
    case.sender.redirect(case.relay.address(second[0].ticket))
    case.receipt = second[0]
    case.check()
    assert max(case.relay.times_sent().values()) <= 2
