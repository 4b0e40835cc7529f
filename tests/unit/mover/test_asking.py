"""Questions and answers on their way: who is owed an answer, on which connection it goes, and what is ignored."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.mover.wire_lab import eventually
from understudy.errors import LinkLost, TransferError
from understudy.model.extent import PART, Extent
from understudy.mover.answers import Answers
from understudy.mover.asking import Asking
from understudy.mover.frames import Codec, Frame, FrameType, pack_parts
from understudy.mover.plan import ReadBlock

BLOCK = 4 * PART


def item(index: int) -> ReadBlock:
    block = Extent(index * BLOCK, BLOCK)
    return ReadBlock(block, index, (block,), vague=True)


class Ledger:
    """What the plan and the window hear."""

    def __init__(self) -> None:
        self.under_way = 0
        self.back: list[ReadBlock] = []
        self.asking = Asking(self.count, self.give_back)

    def count(self, length: int) -> None:
        self.under_way += length

    def give_back(self, items: Sequence[ReadBlock]) -> None:
        self.back.extend(items)


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.asking.heard()
    return made


def test_an_answer_brings_the_item_back_with_what_differs(ledger: Ledger) -> None:
    assert ledger.asking.ask(0, item(3), 0.0)
    assert ledger.under_way == BLOCK
    assert ledger.back == []
    ledger.asking.answered(3, pack_parts(0b0110))
    (back,) = ledger.back
    assert (back.wanted, back.vague) == ((Extent(3 * BLOCK + PART, 2 * PART),), False)
    assert ledger.under_way == 0


def test_an_answer_to_what_was_not_asked_or_is_answered_is_ignored(ledger: Ledger) -> None:
    ledger.asking.answered(5, pack_parts((1 << 64) - 1))
    ledger.asking.ask(0, item(3), 0.0)
    ledger.asking.answered(4, pack_parts(1))
    ledger.asking.answered(3, pack_parts(1))
    ledger.asking.answered(3, pack_parts(2))
    assert len(ledger.back) == 1
    assert ledger.under_way == 0


@pytest.mark.parametrize("payload", [b"", bytes(7), bytes(9), pack_parts(1 << 4), pack_parts((1 << 64) - 1)])
def test_an_answer_that_makes_no_sense_is_an_error(ledger: Ledger, payload: bytes) -> None:
    ledger.asking.ask(0, item(3), 0.0)
    with pytest.raises(TransferError, match="differ frame"):
        ledger.asking.answered(3, payload)
    assert ledger.back == []


def test_a_lost_lane_gives_back_what_was_asked_there_alone(ledger: Ledger) -> None:
    for slot, index in ((0, 1), (1, 2), (0, 3)):
        ledger.asking.ask(slot, item(index), 0.0)
    assert not ledger.asking.lost(2)
    assert ledger.asking.lost(0)
    assert ledger.back == [item(1), item(3)]
    assert ledger.under_way == BLOCK
    assert not ledger.asking.lost(0)
    # The target may have answered before it noticed.
    ledger.asking.answered(1, pack_parts(1))
    assert len(ledger.back) == 2


def test_without_a_connection_of_answers_everything_comes_back_and_nothing_is_asked(ledger: Ledger) -> None:
    ledger.asking.ask(0, item(1), 0.0)
    ledger.asking.ask(1, item(2), 0.0)
    ledger.asking.unheard()
    assert ledger.back == [item(1), item(2)]
    assert ledger.under_way == 0
    assert not ledger.asking.ask(0, item(1), 0.01)
    asked = threading.Thread(target=ledger.asking.ask, args=(0, item(1), 20.0))
    asked.start()
    ledger.asking.heard()
    asked.join(10)
    assert ledger.under_way == BLOCK


# --- the target's side ------------------------------------------------------------------------------------------------


class Line:
    """A connection that notes what is sent on it."""

    def __init__(self) -> None:
        self.sent: list[FrameType] = []
        self.gone = self.closed = False
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()

    def send(self, frame: Frame, _raw: bytes = b"", _wire: bytes = b"") -> None:
        self.busy.set()
        assert self.free.wait(20)
        if self.gone:
            raise LinkLost("send", "gone")
        self.sent.append(frame.type)

    def broken(self) -> bool:
        return self.gone

    def refuse(self, _error: Any) -> None:
        self.sent.append(FrameType.ERROR)

    def close(self) -> None:
        self.closed = True


DIFFER = Frame(FrameType.DIFFER, Codec.NONE, 0, 8, 8)


def begun(answers: Answers, line: Line, sender: str = "me") -> bool:
    return answers.begin(line, sender)  # type: ignore[arg-type]


def test_nothing_that_is_said_after_the_new_connection_was_announced_goes_to_the_old_one() -> None:
    """The source side asks as soon as it hears of it; the answer may be ready before anything else happens here."""
    answers, old, new = Answers(), Line(), Line()
    begun(answers, old)
    new.free.clear()
    change = threading.Thread(target=begun, args=(answers, new))
    change.start()
    assert new.busy.wait(20)
    say = threading.Thread(target=answers.say, args=("me", DIFFER, bytes(8)))
    say.start()
    time.sleep(0.1)
    new.free.set()
    for thread in (change, say):
        thread.join(20)
    assert old.sent == [FrameType.SETTLED]
    assert old.closed
    assert new.sent == [FrameType.SETTLED, FrameType.DIFFER]


def test_an_answer_is_heard_by_who_asked_or_by_nobody() -> None:
    answers, line = Answers(), Line()
    answers.say("me", DIFFER, bytes(8))
    begun(answers, line)
    answers.say("another", DIFFER, bytes(8))
    assert line.sent == [FrameType.SETTLED]


def test_a_connection_that_is_gone_is_forgotten_and_closed_so_that_the_other_side_notices() -> None:
    answers, line, silent = Answers(), Line(), Line()
    begun(answers, line)
    line.gone = True
    answers.say("me", DIFFER, bytes(8))
    assert (answers.connected, line.closed) == (False, True)
    begun(answers, silent)
    silent.gone = True
    answers.look()
    assert (answers.connected, silent.closed) == (False, True)
    answers.say("me", DIFFER, bytes(8))


def test_after_the_end_nobody_speaks() -> None:
    answers, line, late = Answers(), Line(), Line()
    begun(answers, line)
    answers.end(TransferError("x", "y"))
    answers.say("me", DIFFER, bytes(8))
    assert line.sent == [FrameType.SETTLED, FrameType.ERROR]
    assert line.closed
    assert not begun(answers, late)
    assert not answers.connected
    eventually(lambda: line.closed)
