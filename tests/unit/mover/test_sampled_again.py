"""A source side that is begun again samples again: what it finds then does not spoil what the target has already."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import lie, make_image, served, write
from tests.unit.mover.replica_lab import Replica, transferred
from tests.unit.mover.wire_lab import BLOCK, SIZE, Passage, Relay, Target, all_of_it, assert_error, eventually
from understudy.errors import CbtMismatch
from understudy.model.transfer import TransferMode
from understudy.mover.frames import Frame, FrameType

DIRTY = range(8)


@pytest.fixture
def lab(tmp_path: Path, relay: Relay, target: Target) -> Replica:
    """A published point of a disk full of data; then changes in 8 blocks."""
    image = make_image(tmp_path / "disk.qcow2", SIZE)
    write(image, 1, (0, SIZE))
    replica = Replica(tmp_path, image)
    attempt = replica.begin()
    with served(tmp_path, image) as where:
        transferred(attempt, relay, target, where)
    attempt.publish()
    write(image, 2, *((index * BLOCK, BLOCK) for index in DIRTY))
    return replica


def test_a_lie_that_only_the_second_sample_caught_is_mended_by_a_scan_that_goes_on(
    lab: Replica, relay: Relay, target: Target
) -> None:
    attempt = lab.begin(TransferMode.INCREMENTAL, chained=True)
    receipt = attempt.receive(target)
    killed = threading.Event()

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.times_sent()) >= 4 and not killed.is_set():
            eventually(lambda: len(relay.acknowledged()) >= 4)
            killed.set()
            relay.cut()
            return 0
        return None

    relay.passages.clear()
    relay.watch_there = watch
    with served(lab.directory, lab.image, bitmap=lab.bitmap) as where:
        first = attempt.sender(where, connections=1)
        first.patience_s = 0.0
        first.start(relay.address(receipt.ticket))
        assert killed.wait(20)
        first.side.ctx.cancel.cancel()
        first.side.end()
        assert first.side.meter.sums().mismatched == 0
        relay.watch_there = all_of_it
        lie(lab.image, *range(8 * BLOCK, SIZE, BLOCK))
        relay.passages.clear()
        second = attempt.sender(where).start(relay.address(receipt.ticket))
        assert_error(second.side.end(), CbtMismatch, "13 of 13 blocks")
        assert relay.passages == []
        attempt.mode = TransferMode.DIGEST_SCAN
        third = attempt.sender(where).start(relay.address(receipt.ticket))
        assert third.side.end() is None
        assert receipt.side.end() is None
    sums = third.side.meter.sums()
    assert sums.saved == 4 * BLOCK
    assert (sums.checked, sums.mismatched) == (13, 13)
    attempt.publish()
    lab.check()
