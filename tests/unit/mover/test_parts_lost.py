"""Connections, sides and answers that are lost while it is asked which parts differ: asked again, never missed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import make_image, run, served, write
from tests.unit.mover.replica_lab import Replica, transferred
from tests.unit.mover.scan_lab import Base, Scan, answered, asked
from tests.unit.mover.wire_lab import (
    BLOCK,
    DROP,
    SIZE,
    Passage,
    Relay,
    Target,
    all_of_it,
    assert_error,
    eventually,
)
from understudy.context import Context
from understudy.errors import Cancelled, LinkLost, TransferError
from understudy.model.extent import PART
from understudy.model.transfer import TransferMode
from understudy.mover.frames import Frame, FrameType
from understudy.units import KIB

#: One part of each of these blocks changes.
CHANGED = [0, 5, 10, 15, 40, 61, 79]


@pytest.fixture
def scan(tmp_path: Path, target: Target) -> Scan:
    return Scan(tmp_path, target)


def changed(scan: Scan) -> Base:
    """The base of a disk of which some parts have changed since."""
    base = scan.replicated()
    scan.change(*CHANGED)
    return base


def once(frame_type: FrameType, number: int, act: Callable[[Relay, Passage, Frame, bytes], int | None]) -> Callable[
    [Relay, Passage, Frame, bytes], int | None
]:
    """Do ``act`` with frame ``number`` of that type."""
    lock, seen = threading.Lock(), [0]

    def watch(relay: Relay, passage: Passage, frame: Frame, payload: bytes) -> int | None:
        if frame.type is not frame_type:
            return None
        with lock:
            seen[0] += 1
            if seen[0] != number:
                return None
        return act(relay, passage, frame, payload)

    return watch


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("passed", [0, 20, 40, 60, 104])
@pytest.mark.parametrize("number", [1, 4])
def test_a_cut_around_a_question_is_survived(
    scan: Scan, relay: Relay, number: int, passed: int, everything: bool
) -> None:
    """It is lost, torn, or arrives whole on a connection that is gone when it is answered."""
    base = changed(scan)

    def cut(relay: Relay, passage: Passage, _frame: Frame, _payload: bytes) -> int:
        if everything:
            for other in relay.passages:
                if other is not passage:
                    other.cut()
        return passed

    relay.watch_there = once(FrameType.ASK, number, cut)
    with scan.scanning(base, relay):
        sums = scan.check()
    assert sums.reconnects >= 1
    assert set(scan.written()) == set(CHANGED)


@pytest.mark.parametrize("role", ["answers", "both"])
@pytest.mark.parametrize("passed", [0, 20, 40, 44, 48])
@pytest.mark.parametrize("number", [1, 4])
def test_a_cut_around_an_answer_is_survived(scan: Scan, relay: Relay, number: int, passed: int, role: str) -> None:
    base = changed(scan)

    def cut(relay: Relay, passage: Passage, _frame: Frame, _payload: bytes) -> int:
        if role == "both":
            relay.cut("data")
        return passed

    relay.watch_back = once(FrameType.DIFFER, number, cut)
    with scan.scanning(base, relay):
        scan.check()
    assert len(relay.of("answers")) == 2
    assert set(scan.written()) == set(CHANGED)


@pytest.mark.parametrize("frame_type", [FrameType.DATA, FrameType.DIGEST, FrameType.SETTLED, FrameType.END])
@pytest.mark.parametrize("everything", [False, True])
def test_a_cut_after_the_answer_asks_nothing_again(
    scan: Scan, relay: Relay, frame_type: FrameType, everything: bool
) -> None:
    """What is known by then stays known: the parts are read and sent again, and no others."""
    base = changed(scan)

    def cut(relay: Relay, _passage: Passage, _frame: Frame, _payload: bytes) -> int:
        eventually(lambda: len(answered(relay)) == len(CHANGED), "all answers")
        time.sleep(0.05)  # they are heard
        if everything:
            relay.cut()
        return 30

    relay.watch_there = once(frame_type, 1, cut)
    base.open.clear()
    with scan.scanning(base, relay):
        eventually(lambda: len(asked(relay)) == len(CHANGED), "all questions")
        base.open.set()
        scan.check()
    assert sorted(asked(relay)) == [part * PART // BLOCK * BLOCK for part in CHANGED]
    assert set(scan.written()) == set(CHANGED)


def test_answers_that_went_astray_with_their_connection_are_asked_for_again(scan: Scan, relay: Relay) -> None:
    """The target believes that it has said them."""
    base = changed(scan)
    lost: list[int] = []

    def swallow(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DIFFER:
            lost.append(frame.offset)
            if len(lost) < len(CHANGED):
                return DROP
            relay.watch_back = all_of_it
            return 0
        # What comes behind must not come either, or the gap would be noticed. A data connection may be made only now.
        return DROP if lost and passage in relay.of("answers") else None

    relay.watch_back = swallow
    with scan.scanning(base, relay):
        scan.check()
    assert len(lost) == len(CHANGED)
    assert sorted(asked(relay)) == sorted(2 * [part * PART // BLOCK * BLOCK for part in CHANGED])
    assert scan.written() == CHANGED


def test_nothing_is_asked_while_nobody_hears_the_answer(scan: Scan, relay: Relay) -> None:
    """The new connection of answers is made, and the target speaks on it late: until then no question is sent."""
    base = changed(scan)
    there, go_on = threading.Event(), threading.Event()

    def hold(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.SETTLED and len(relay.of("answers")) == 2:
            there.set()
            assert go_on.wait(20)
        return None

    def cut(relay: Relay, passage: Passage, _frame: Frame, _payload: bytes) -> int:
        relay.watch_back = hold
        return 0

    relay.watch_back = once(FrameType.DIFFER, 1, cut)
    base.open.clear()
    with scan.scanning(base, relay):
        eventually(lambda: len(asked(relay)) == len(CHANGED), "all questions")
        base.open.set()
        assert there.wait(20)
        time.sleep(0.3)
        assert len(asked(relay)) == len(CHANGED)
        go_on.set()
        scan.check()
    assert scan.written() == CHANGED


def test_an_answer_that_comes_twice_is_taken_once(scan: Scan, relay: Relay) -> None:
    """The connection on which it was asked is lost, so it is asked again; then both answers come."""
    base = changed(scan)
    base.open.clear()
    with scan.scanning(base, relay, 1):
        assert base.waits.wait(20)
        eventually(lambda: len(asked(relay)) == len(CHANGED), "all questions")
        relay.cut("data")
        eventually(lambda: len(asked(relay)) == 2 * len(CHANGED), "all questions again")
        base.open.set()
        sums = scan.check()
    assert len(answered(relay)) > len(CHANGED)
    assert scan.written() == CHANGED
    assert sums.sent == len(CHANGED) * PART


def test_many_cuts_in_a_row_are_survived(scan: Scan, relay: Relay) -> None:
    base = scan.replicated()
    scan.change(*range(0, 80, 2))
    dice, lock, cuts = random.Random(3), threading.Lock(), [0]

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        with lock:
            if cuts[0] == 25 or frame.type in (FrameType.HELLO, FrameType.WELCOME) or dice.random() > 0.1:
                return None
            cuts[0] += 1
            if dice.random() < 0.3:
                relay.cut()
            return dice.choice([0, 20, 40, 10_000])

    relay.watch_there = relay.watch_back = watch
    with scan.scanning(base, relay, 3):
        scan.check()
    assert cuts[0] > 5
    assert set(scan.written()) == set(range(0, 80, 2))


def test_a_source_that_never_hears_an_answer_fails_when_its_patience_ends(scan: Scan, relay: Relay) -> None:
    base = changed(scan)
    relay.watch_back = lambda _relay, _passage, frame, _payload: 0 if frame.type is FrameType.DIFFER else None
    with scan.scanning(base, relay) as sender:
        assert sender.link is not None
        sender.link._patience_s = 1.5
        error = sender.side.end(20)
    assert isinstance(error, LinkLost), error
    assert "nothing has arrived for" in str(error)


@pytest.mark.parametrize("who", ["source", "target"])
def test_a_cancel_while_an_answer_is_waited_for_ends_both(scan: Scan, who: str) -> None:
    base = changed(scan)
    base.open.clear()
    with scan.scanning(base) as sender:
        assert base.waits.wait(20)
        started = time.monotonic()
        assert scan.receipt is not None
        (sender if who == "source" else scan.receipt).side.ctx.cancel.cancel()
        assert sender.side.end() is not None
        scan.receipt.stop()
        assert time.monotonic() - started < 5
    assert base.stopped
    assert all(thread.name != "answering" for thread in threading.enumerate())


def test_a_defect_in_answering_ends_the_transfer_on_both_sides(
    scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed(scan)

    def defect(_offset: int, _view: memoryview) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(base, "read", defect)
    with scan.scanning(base) as sender:
        assert scan.receipt is not None
        for error in (sender.side.end(), scan.receipt.side.end()):
            assert_error(error, TransferError, "compare with the base point: internal error: ZeroDivisionError")
    assert not scan.layer.finished


# --- in a real store --------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path, relay: Relay, target: Target) -> Replica:
    """A replica of a disk of 21 blocks with data, of which four have changed since, a part of each."""
    image = make_image(tmp_path / "disk.qcow2", SIZE)
    write(image, 1, (0, SIZE))
    made = Replica(tmp_path, image)
    attempt = made.begin()
    with served(tmp_path, image) as where:
        transferred(attempt, relay, target, where)
    attempt.publish()
    write(image, 2, *((block * BLOCK + 100 * KIB, 10) for block in (1, 4, 9, 17)))
    relay.passages.clear()
    return made


def layer_bytes(lab: Replica) -> int:
    """Length of the newest layer."""
    return lab.store.image(lab.points[-1], "vda").stat().st_size


@pytest.mark.parametrize("local", [False, True], ids=["two movers", "one mover"])
def test_the_new_layer_holds_only_parts_that_differ(lab: Replica, relay: Relay, target: Target, local: bool) -> None:
    attempt = lab.begin(TransferMode.DIGEST_SCAN, chained=True)
    with served(lab.directory, lab.image) as where:
        sums = attempt.copy(Context(), where) if local else transferred(attempt, relay, target, where)
    attempt.publish()
    lab.check()
    assert sums.sent == 4 * PART
    assert layer_bytes(lab) <= (4 + 8) * PART


@pytest.mark.parametrize("answers", [0, 2])
def test_a_target_that_is_started_again_is_asked_again(
    lab: Replica, relay: Relay, target: Target, answers: int
) -> None:
    """Some of what was asked is answered, and maybe durable, when it is killed."""
    attempt = lab.begin(TransferMode.DIGEST_SCAN, chained=True)
    killed = threading.Event()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DIFFER and len(answered(relay)) >= answers and not killed.is_set():
            eventually(lambda: len(asked(relay)) == 4, "all questions")
            eventually(lambda: len(relay.times_sent()) == answers, "the parts whose answers were heard")
            relay.down = True
            killed.set()
            relay.cut()
            return 0
        return None

    relay.watch_back = watch
    with served(lab.directory, lab.image) as where:
        sender = attempt.sender(where).start(relay.address(attempt.receive(target).ticket))
        assert killed.wait(20)
        attempt.crash()
        relay.down = False
        again = lab.begin(TransferMode.DIGEST_SCAN, chained=True, resume=True)
        sender.redirect(relay.address(again.receive(target).ticket))
        assert sender.side.end() is None
        assert again.receipt is not None
        assert again.receipt.side.end() is None
    again.publish()
    lab.check()
    assert len(asked(relay)) <= 4 + 4 - answers
    assert layer_bytes(lab) <= (4 + 8) * PART


def test_a_source_that_is_started_again_hears_no_answers_for_the_one_before(
    lab: Replica, relay: Relay, target: Target
) -> None:
    """The disk is another by then; each hears only what it asked itself."""
    attempt = lab.begin(TransferMode.DIGEST_SCAN, chained=True)
    image = lab.store.image(lab.points[-1], "vda")
    run("qemu-img", "convert", "-O", "raw", image, lab.directory / "base.raw")
    base = Base((lab.directory / "base.raw").read_bytes())
    base.open.clear()
    receipt = attempt.receive(target, base)
    with served(lab.directory, lab.image) as where:
        first = attempt.sender(where).start(relay.address(receipt.ticket))
        eventually(lambda: len(asked(relay)) == 4, "the questions of the first")
        first.side.ctx.cancel.cancel()
        assert isinstance(first.side.end(), Cancelled)
    write(lab.image, 3, *((block * BLOCK + 200 * KIB, 10) for block in (1, 4, 9, 17)))
    relay.passages.clear()
    with served(lab.directory, lab.image) as where:
        second = attempt.sender(where).start(relay.address(receipt.ticket))
        eventually(lambda: len(asked(relay)) == 4, "the questions of the second")
        base.open.set()
        assert second.side.end() is None
        assert receipt.side.end() is None
    assert len(answered(relay)) == 4
    attempt.publish()
    lab.check()
    assert second.side.meter.sums().sent == 8 * PART
