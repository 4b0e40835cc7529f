"""What came before a failure is not lost: the target killed, the source killed, and the next session after either."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import io, make_image, served, write
from tests.unit.mover.replica_lab import Attempt, Replica, transferred
from tests.unit.mover.wire_lab import (
    BLOCK,
    BLOCKS,
    SIZE,
    Passage,
    Relay,
    Sender,
    Target,
    all_of_it,
    assert_error,
    brought,
    eventually,
)
from understudy.context import Context
from understudy.errors import Cancelled, Refused, TransferError
from understudy.model.transfer import TransferMode
from understudy.mover import arriving as arriving_module
from understudy.mover.api import NbdSource
from understudy.mover.frames import Frame, FrameType, unpack_durable
from understudy.mover.outgoing import Outgoing
from understudy.units import KIB, MIB

Watch = Callable[[Relay, Passage, Frame, bytes], int | None]
CONTENT = (FrameType.DATA, FrameType.ZERO, FrameType.DIGEST)


@pytest.fixture
def lab(tmp_path: Path) -> Replica:
    """A source of 21 blocks, all but two of them with data."""
    image = make_image(tmp_path / "disk.qcow2", SIZE)
    write(image, 1, (0, 2 * MIB), (2 * MIB + 512 * KIB, SIZE - 2 * MIB - 512 * KIB))
    return Replica(tmp_path, image)


def interrupted(
    attempt: Attempt, relay: Relay, target: Target, where: NbdSource, frames: int, *, settled: bool = True
) -> Sender:
    """A transfer whose both sides end after so many frames of content.

    :param settled: what went before is acknowledged.
    """
    receipt = attempt.receive(target)
    sender = attempt.sender(where, connections=1)
    lock = threading.Lock()
    seen = [0]

    def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        with lock:
            seen[0] += frame.type in CONTENT
            if seen[0] <= frames:
                return None
            if settled:
                eventually(lambda: acknowledged_frames(relay) >= frames)
            relay.watch_there = lambda *_: 0
            relay.down = True
            relay.cut()
        return 0

    relay.down = False
    relay.passages.clear()
    relay.watch_there = watch
    sender.start(relay.address(receipt.ticket))
    eventually(lambda: relay.down or not sender.side.running, "the cut")
    sender.side.ctx.cancel.cancel()
    sender.side.end()
    receipt.side.ctx.cancel.cancel()
    receipt.side.end()
    relay.down = False
    relay.watch_there = all_of_it
    return sender


def acknowledged_frames(relay: Relay) -> int:
    """How many frames of content were acknowledged on the newest data connection."""
    told = [state.frames for passage in relay.of("answers") for frame, payload in passage.back
            if frame.type is FrameType.ACKNOWLEDGE for state in unpack_durable(payload)]
    return max(told, default=1) - 1


# --- the target is killed ---------------------------------------------------------------------------------------------


def killed_target(
    lab: Replica, relay: Relay, target: Target, where: NbdSource, blocks: int, before_resume: Callable[[], None]
) -> tuple[Attempt, Sender, set[int]]:
    """A transfer whose target is killed when ``blocks`` blocks are acknowledged, and goes on in a new one."""
    attempt = lab.begin()
    receipt = attempt.receive(target)
    sender = attempt.sender(where, connections=1)
    reached = threading.Event()

    def watch(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.DATA and len(relay.times_sent()) >= blocks and not reached.is_set():
            eventually(lambda: len(relay.acknowledged()) >= blocks, "acknowledgements")
            eventually(lambda: brought(sender) >= blocks * BLOCK, "their arrival")
            relay.down = True
            reached.set()
            relay.cut()
            return 0
        return None

    relay.watch_there = watch
    sender.start(relay.address(receipt.ticket))
    assert reached.wait(20)
    acknowledged = relay.acknowledged()
    attempt.crash()
    before_resume()
    relay.down = False
    again = lab.begin(resume=True)
    sender.redirect(relay.address(again.receive(target).ticket))
    return again, sender, acknowledged


def test_a_killed_target_goes_on_with_all_that_it_acknowledged(
    lab: Replica, relay: Relay, target: Target
) -> None:
    with served(lab.directory, lab.image) as where:
        attempt, sender, acknowledged = killed_target(lab, relay, target, where, 6, lambda: None)
        assert sender.side.end() is None
        assert attempt.receipt is not None
        assert attempt.receipt.side.end() is None
    assert len(acknowledged) == 6
    assert {index: relay.times_sent()[index] for index in acknowledged} == dict.fromkeys(acknowledged, 1)
    attempt.publish()
    lab.check()


def test_a_data_connection_may_find_the_new_target_first(lab: Replica, relay: Relay, target: Target) -> None:
    def hold_answers() -> None:
        def watch(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
            if frame.type is FrameType.HELLO and passage.role == "answers":
                eventually(lambda: relay.of("data")[-1].count(FrameType.DIGEST) > 3, "data")
            return None

        relay.watch_there = watch

    with served(lab.directory, lab.image) as where:
        attempt, sender, _ = killed_target(lab, relay, target, where, 6, hold_answers)
        assert sender.side.end() is None
    attempt.publish()
    lab.check()


@pytest.mark.parametrize("first", ["data", "answers"])
@pytest.mark.parametrize("what", ["journal", "layer", "digests"])
def test_a_target_that_lost_what_it_had_acknowledged_is_found_out(
    lab: Replica, relay: Relay, target: Target, what: str, first: str
) -> None:
    def sent_or_refused() -> bool:
        found = relay.of("data")[1:]
        return bool(found) and (found[-1].ended or len(relay.times_sent()) == BLOCKS - 2)

    def hold(_relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is FrameType.HELLO and passage.role == "answers" and first == "data":
            eventually(sent_or_refused)
        return None

    def lose() -> None:
        relay.watch_there = hold
        ending = {"journal": "*journal*", "layer": "layers/*.qcow2*", "digests": "digests/*digest*"}[what]
        found = [path for path in (lab.directory / f"ds{lab.moves}").rglob(ending) if "partial" in path.name]
        assert found, list((lab.directory / f"ds{lab.moves}").rglob("*"))
        for path in found:
            path.unlink()

    with served(lab.directory, lab.image) as where:
        attempt, sender, _ = killed_target(lab, relay, target, where, 6, lose)
        assert_error(sender.side.end(), TransferError, "has lost what it had acknowledged")
    attempt.stop()
    assert lab.store.load().points == ()


def test_blocks_that_a_target_lost_unnoticed_are_missed_at_the_end(
    lab: Replica, relay: Relay, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the number of complete blocks right by chance, the digests are not."""
    monkeypatch.setattr(Outgoing, "_check_complete", lambda *_: None)

    def lose() -> None:
        for path in (lab.directory / f"ds{lab.moves}").rglob("*journal*"):
            path.unlink()

    with served(lab.directory, lab.image) as where:
        attempt, sender, _ = killed_target(lab, relay, target, where, 6, lose)
        assert_error(sender.side.end(), TransferError, "the digests are not those of the source side")
    attempt.stop()


# --- the source is killed ---------------------------------------------------------------------------------------------


def test_a_source_that_was_started_again_does_not_send_what_is_complete(
    lab: Replica, relay: Relay, target: Target
) -> None:
    attempt = lab.begin()
    receipt = attempt.receive(target)
    with served(lab.directory, lab.image) as where:
        first = attempt.sender(where, connections=1)
        killed = threading.Event()

        def watch(relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
            if frame.type is FrameType.DATA and len(relay.times_sent()) >= 7 and not killed.is_set():
                eventually(lambda: len(relay.acknowledged()) >= 7)
                killed.set()
                relay.cut()
                return 0
            return None

        relay.watch_there = watch
        first.patience_s = 0.0
        first.start(relay.address(receipt.ticket))
        assert killed.wait(20)
        first.side.ctx.cancel.cancel()
        first.side.end()
        before = relay.times_sent()
        relay.passages.clear()
        second = attempt.sender(where)
        second.start(relay.address(receipt.ticket))
        assert second.side.end() is None
        assert receipt.side.end() is None
    assert sorted(before) == list(range(7))
    assert not set(before) & set(relay.times_sent())
    assert second.side.meter.sums().saved == 7 * BLOCK
    attempt.publish()
    lab.check()


def test_acknowledgements_for_a_killed_source_are_not_taken_by_its_successor(
    lab: Replica, relay: Relay, target: Target
) -> None:
    """The target has not noticed yet that the first is gone; slots and epochs of the second are the same."""
    attempt = lab.begin()
    receipt = attempt.receive(target)
    with served(lab.directory, lab.image) as where:
        first = attempt.sender(where, connections=1)
        held = threading.Event()
        end = threading.Event()

        def hold(relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
            if frame.type is FrameType.DATA and len(relay.times_sent()) >= 7 and passage is relay.of("data")[0]:
                held.set()
                end.wait(20)
                return 0
            return None

        relay.watch_there = hold
        first.start(relay.address(receipt.ticket))
        assert held.wait(20)
        eventually(lambda: len(relay.acknowledged()) >= 7)
        old = list(relay.passages)
        second = attempt.sender(where, connections=1)
        sent: list[int] = []

        def count(_relay: Relay, passage: Passage, frame: Frame, _payload: bytes) -> int | None:
            if passage not in old and frame.type in (*CONTENT, FrameType.SETTLED):
                sent.append(frame.offset)
            return hold(_relay, passage, frame, _payload)

        def look(_relay: Relay, passage: Passage, frame: Frame, payload: bytes) -> int | None:
            if passage not in old and frame.type is FrameType.ACKNOWLEDGE:
                assert all(state.frames <= len(sent) + 2 for state in unpack_durable(payload)), "too early"
            return None

        relay.watch_there, relay.watch_back = count, look
        second.start(relay.address(receipt.ticket))
        assert second.side.end() is None
        end.set()
        # The first lives on, and is told.
        assert_error(first.side.end(), Refused, "another source proxy sends for it now")
        assert receipt.side.end() is None
    attempt.publish()
    lab.check()


# --- the next session -------------------------------------------------------------------------------------------------


def change(image: Path) -> None:
    """Data over data, zeros over data, data over zeros, a trim, and one block as it was before."""
    write(image, 2, (256 * KIB, 10), (MIB + 64 * KIB, 64 * KIB), (2 * MIB, 300 * KIB))
    io(image, "write -z -u 512K 256K", "write -P 0 1536K 256K", "discard 768K 256K")


@pytest.mark.parametrize("how", ["keep", "crash"])
@pytest.mark.parametrize("local", [False, True], ids=["two movers", "one mover"])
@pytest.mark.parametrize("kind", ["alone", "full", "scan", "incremental"])
def test_the_next_session_goes_on_though_the_source_changed(
    lab: Replica, relay: Relay, target: Target, how: str, local: bool, kind: str
) -> None:
    mode = {"incremental": TransferMode.INCREMENTAL, "scan": TransferMode.DIGEST_SCAN}.get(kind, TransferMode.FULL)
    chained = kind != "alone"
    if chained:
        point = lab.begin()
        with served(lab.directory, lab.image) as where:
            transferred(point, relay, target, where)
        point.publish()
        lab.check()
        write(lab.image, 5, (0, 3 * MIB))
        io(lab.image, "write -z -u 1M 256K", "write -z -u 2816K 256K")
    tracked = lab.bitmap if mode is TransferMode.INCREMENTAL else ""
    failed = lab.begin(mode, chained=chained)
    with served(lab.directory, lab.image, bitmap=tracked) as where:
        interrupt = interrupted_copy if local else interrupted_transfer
        interrupt(failed, relay, target, where)
    (failed.keep if how == "keep" else failed.crash)()
    change(lab.image)
    again = lab.begin(mode, chained=chained)
    assert again.kept_bytes >= 4 * BLOCK
    with served(lab.directory, lab.image, bitmap=tracked) as where:
        sums = again.copy(Context(), where) if local else transferred(again, relay, target, where)
    assert sums.saved > 0
    again.publish()
    lab.check()


def interrupted_transfer(attempt: Attempt, relay: Relay, target: Target, where: NbdSource) -> None:
    """Both sides end in the middle."""
    interrupted(attempt, relay, target, where, 16)


def interrupted_copy(attempt: Attempt, _relay: Relay, _target: Target, where: NbdSource) -> None:
    """A copy within one mover that is cancelled in the middle, after a checkpoint."""
    stop_copy(attempt, where, 8, checkpoint=True)


def stop_copy(attempt: Attempt, where: NbdSource, blocks: int, *, checkpoint: bool) -> None:
    """Cancel a copy within one mover when so many blocks are complete."""
    ctx = Context()
    put, complete = attempt.disk.put_digests, [0]

    def counted(first: int, digests: bytes) -> None:
        put(first, digests)
        complete[0] += 1
        if complete[0] == blocks:
            if checkpoint:
                attempt.disk.checkpoint()
            ctx.cancel.cancel()

    attempt.disk.put_digests = counted  # type: ignore[method-assign, assignment]
    try:
        attempt.copy(ctx, where)
    except Cancelled:
        pass
    finally:
        attempt.disk.put_digests = put  # type: ignore[method-assign]


def scribble(dice: random.Random, image: Path) -> None:
    """Random changes; often the same places, so that old content comes again."""
    for _ in range(dice.randint(0, 4)):
        offset = dice.choice([dice.randrange(0, SIZE, 512), dice.randrange(BLOCKS) * BLOCK])
        length = min(dice.choice([512, 65536, BLOCK, MIB]), SIZE - offset)
        verb = dice.choice(["", "", "write -P 0", "write -z", "write -z -u", "discard"])
        if verb:
            io(image, f"{verb} {offset} {length}")
        else:
            write(image, dice.choice([1, 5, dice.randrange(1 << 30)]), (offset, length))


@pytest.mark.parametrize("seed", range(8))
def test_random_histories_with_crashes_stay_equal(
    lab: Replica, relay: Relay, target: Target, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_module, "CHECKPOINT_S", 0.02)
    dice = random.Random(seed)
    for step in range(3):
        chained = step > 0 and dice.random() < 0.8
        modes = [TransferMode.INCREMENTAL] * 3 + [TransferMode.DIGEST_SCAN] * 2 if chained else []
        mode = dice.choice([*modes, TransferMode.FULL])
        for _ in range(dice.randint(0, 3)):
            mode = fail_once(dice, lab, relay, target, mode, chained=chained)
            scribble(dice, lab.image)
        attempt = lab.begin(mode, chained=chained)
        with served(lab.directory, lab.image, bitmap=lab.bitmap if lab.points else "") as where:
            if dice.random() < 0.3:
                attempt.copy(Context(), where)
            else:
                transferred(attempt, relay, target, where, dice.randint(1, 3))
        attempt.publish()
        lab.check()
        scribble(dice, lab.image)


def fail_once(
    dice: random.Random, lab: Replica, relay: Relay, target: Target, mode: TransferMode, *, chained: bool
) -> TransferMode:
    """An attempt that fails somewhere, in some way; the mode of the next."""
    attempt = lab.begin(mode, chained=chained)
    with served(lab.directory, lab.image, bitmap=lab.bitmap if lab.points else "") as where:
        blocks = dice.randint(1, BLOCKS)
        if dice.random() < 0.3:
            stop_copy(attempt, where, blocks, checkpoint=dice.random() < 0.5)
        else:
            interrupted(attempt, relay, target, where, 2 * blocks - dice.randint(0, 1), settled=dice.random() < 0.5)
    if dice.random() < 0.5:
        attempt.keep()
    else:
        attempt.crash()
    if mode is TransferMode.INCREMENTAL and dice.random() < 0.2:
        return TransferMode.DIGEST_SCAN
    return mode


def test_nothing_is_claimed_that_was_not_acknowledged(lab: Replica, relay: Relay, target: Target) -> None:
    """Without a checkpoint since, what came is unknown to the next session."""
    attempt = lab.begin()
    with served(lab.directory, lab.image) as where:
        interrupted(attempt, relay, target, where, 8)
    attempt.keep()
    again = lab.begin()
    kept = again.draft.kept("vda")
    assert sum(extent.length for extent in kept.complete) == 4 * BLOCK
    again.keep()
