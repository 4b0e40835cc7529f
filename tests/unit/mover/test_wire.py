"""Two sides of a transfer in one process: what arrives, and how both end when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import RawLayer, add_bitmap, io, make_image, same_content, served, write
from tests.unit.mover.wire_lab import (
    BLOCK,
    DROP,
    SIZE,
    Passage,
    Receipt,
    Relay,
    Sender,
    Target,
    arriving,
    assert_error,
    checksum,
    eventually,
    receiving,
)
from understudy.errors import Cancelled, DatastoreError, LinkLost, Refused, TransferError
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource
from understudy.mover.frames import Frame, FrameType
from understudy.storage import Buffer
from understudy.units import KIB, MIB

NOBODY = NbdSource("", "", "")


def run(receipt: Receipt, sender: Sender) -> tuple[BaseException | None, BaseException | None]:
    """A transfer from start to end; both errors."""
    sender.start(receipt.address)
    errors = sender.side.end(), receipt.side.end()
    receipt.stop()
    return errors


def full_copy(target: Target, image: Path, directory: Path) -> RawLayer:
    """A full copy into ``base.raw``, with digests ``base.source`` and ``base.target``."""
    layer = RawLayer(directory / "base.raw", SIZE)
    receipt = target.receive(arriving(layer, directory / "base.target"), receiving())
    with served(directory, image) as where:
        assert run(receipt, Sender(where, directory / "base.source")) == (None, None)
    return layer


def incremental(target: Target, directory: Path, image: Path) -> tuple[RawLayer, Sender, Receipt]:
    """An incremental on a full copy of ``image``, which is served no more."""
    base = directory / "base.raw"
    add_bitmap(image, "b")
    write(image, 2, (MIB, 10), (4 * MIB, BLOCK))
    io(image, "write -z -u 512K 512K")
    layer = RawLayer(directory / "next.raw", SIZE, base.read_bytes())
    terms = receiving(point="q", chained=True, base_point="p", base=directory / "base.target")
    receipt = target.receive(arriving(layer, directory / "next.target", point="q"), terms)
    with served(directory, image, bitmap="b") as where:
        sender = Sender(where, directory / "next.source", TransferMode.INCREMENTAL, True, "q", "p",
                        directory / "base.source")
        assert run(receipt, sender) == (None, None)
    assert same_content(image, "qcow2", layer.path, "raw")
    assert checksum(directory / "next.source") == checksum(directory / "next.target")
    return layer, sender, receipt


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("connections", [1, 5])
def test_both_sides_end_with_the_same_bytes_and_digests(
    tmp_path: Path, target: Target, disk_image: Path, disk: NbdSource, compression: Compression, connections: int
) -> None:
    layer = RawLayer(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    sender = Sender(disk, tmp_path / "source.digest", compression=compression, connections=connections)
    assert run(receipt, sender) == (None, None)
    assert layer.finished
    assert same_content(disk_image, "qcow2", layer.path, "raw")
    assert checksum(tmp_path / "source.digest") == checksum(tmp_path / "target.digest")
    there, here = sender.side.meter.sums(), receipt.side.meter.sums()
    assert there.sent == here.sent == layer.written
    assert there.processed == SIZE
    assert there.wire > 0
    assert (there.reconnects, there.saved) == (0, 0)
    assert not (tmp_path / "source.digest.claims").exists()


def test_what_arrived_is_called_complete_at_checkpoints(tmp_path: Path, target: Target, disk_image: Path) -> None:
    layer = full_copy(target, disk_image, tmp_path)
    complete = [extent.start // BLOCK for extent in layer.complete]
    written = {offset // BLOCK for _, offset, _ in layer.calls}
    assert len(complete) == len(set(complete))
    assert set(complete) <= written


def test_an_incremental_sends_few_digests(tmp_path: Path, target: Target, disk_image: Path) -> None:
    full_copy(target, disk_image, tmp_path)
    _, sender, _ = incremental(target, tmp_path, disk_image)
    # Five 64 KiB parts with their digests and a range of zeros; the other digests are known at the target.
    assert sender.side.meter.sums().wire < 6 * 64 * KIB


@pytest.mark.parametrize("act", ["lost", "damaged"])
def test_digests_lost_at_the_target_are_healed(
    tmp_path: Path, target: Target, disk_image: Path, act: str
) -> None:
    full_copy(target, disk_image, tmp_path)
    path = tmp_path / "base.target"
    if act == "lost":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"x")
    incremental(target, tmp_path, disk_image)


@pytest.mark.parametrize("frame_type", [FrameType.DATA, FrameType.DIGEST])
def test_a_frame_that_is_lost_without_a_trace_is_noticed(
    tmp_path: Path, target: Target, relay: Relay, disk: NbdSource, frame_type: FrameType
) -> None:
    lost: list[Frame] = []

    def lossy(_relay: Relay, _passage: Passage, frame: Frame, _payload: bytes) -> int | None:
        if frame.type is frame_type and not lost:
            lost.append(frame)
            return DROP
        return None

    relay.watch_there = lossy
    layer = RawLayer(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    sender = Sender(disk, tmp_path / "source.digest").start(relay.address(receipt.ticket))
    for error in (sender.side.end(), receipt.side.end()):
        assert_error(error, TransferError, f"instead of {lost[0].number}")
    assert not layer.finished


def test_a_layer_on_another_point_is_refused(
    tmp_path: Path, target: Target, disk_image: Path
) -> None:
    full_copy(target, disk_image, tmp_path)
    layer = RawLayer(tmp_path / "next", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "next.target"), receiving(chained=True, base_point="other"))
    here = tmp_path / "next.source"
    sender = Sender(NOBODY, here, TransferMode.DIGEST_SCAN, True, "p", "p", tmp_path / "base.source")
    with served(tmp_path, disk_image) as sender.where:
        errors = run(receipt, sender)
    for error in errors:
        assert_error(error, Refused, "base_point")
    assert layer.calls == []


class FullLayer(RawLayer):
    """A layer whose datastore is full after a while."""

    def write_at(self, offset: int, data: Buffer) -> None:
        if offset >= MIB:
            raise DatastoreError("write layer", "No space left on device", "make room")
        super().write_at(offset, data)


class ForgetfulLayer(RawLayer):
    """A layer that cannot be made durable on the way."""

    def checkpoint(self, complete: object) -> None:
        raise DatastoreError("write layer", "Input/output error")


class UnfinishableLayer(RawLayer):
    """A layer that cannot be completed."""

    def finish(self) -> None:
        raise DatastoreError("finish layer", "Input/output error")


@pytest.mark.parametrize("layer_type", [FullLayer, ForgetfulLayer, UnfinishableLayer])
def test_a_failing_target_is_named_on_both_sides(
    tmp_path: Path, target: Target, disk: NbdSource, layer_type: type[RawLayer]
) -> None:
    layer = layer_type(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    for error in run(receipt, Sender(disk, tmp_path / "source.digest")):
        assert isinstance(error, DatastoreError), error
    assert not layer.finished


def test_a_source_that_cannot_be_read_ends_its_side(tmp_path: Path, target: Target, disk: NbdSource) -> None:
    receipt = target.receive(arriving(RawLayer(tmp_path / "l", SIZE), tmp_path / "d"), receiving())
    gone = NbdSource(disk.socket, "nothing", "")
    sender = Sender(gone, tmp_path / "source.digest").start(receipt.address)
    assert isinstance(sender.side.end(), TransferError)
    assert receipt.side.running
    receipt.stop()


def test_a_wrong_ticket_gets_nowhere(tmp_path: Path, target: Target, disk: NbdSource) -> None:
    layer = RawLayer(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    sender = Sender(disk, tmp_path / "source.digest", patience_s=0.3).start(target.address("guess"))
    assert_error(sender.side.end(), LinkLost, "none for this ticket")
    assert receipt.side.running
    receipt.stop()
    assert_error(receipt.side.error, Cancelled, "")
    assert layer.calls == []


class StuckLayer(RawLayer):
    """A layer whose writes hang until released."""

    release = threading.Event()
    reached = threading.Event()

    def write_at(self, offset: int, data: Buffer) -> None:
        self.reached.set()
        self.release.wait(30)
        super().write_at(offset, data)


@contextmanager
def stuck(release: Callable[[], bool]) -> Iterator[None]:
    """Release stuck layers in the end, once ``release`` is true."""
    StuckLayer.release.clear()
    StuckLayer.reached.clear()
    try:
        yield
        eventually(release)
    finally:
        StuckLayer.release.set()


def test_a_cancel_ends_the_source_while_the_target_is_stuck(tmp_path: Path, target: Target, disk: NbdSource) -> None:
    layer = StuckLayer(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    with stuck(lambda: not sender.side.running):
        sender = Sender(disk, tmp_path / "source.digest").start(receipt.address)
        assert layer.reached.wait(20)
        sender.side.ctx.cancel.cancel()
    assert isinstance(sender.side.error, Cancelled)
    receipt.stop()
    assert isinstance(receipt.side.error, Cancelled)
    assert not layer.finished


def test_a_cancel_at_the_target_is_told_to_the_source(tmp_path: Path, target: Target, disk: NbdSource) -> None:
    layer = StuckLayer(tmp_path / "layer", SIZE)
    receipt = target.receive(arriving(layer, tmp_path / "target.digest"), receiving())
    with stuck(lambda: not sender.side.running):
        sender = Sender(disk, tmp_path / "source.digest").start(receipt.address)
        assert layer.reached.wait(20)
        receipt.side.ctx.cancel.cancel()
    for error in (sender.side.end(), receipt.side.end()):
        assert isinstance(error, Cancelled), error
    receipt.stop()
    assert not layer.finished


def test_digest_frames_reach_the_last_block(tmp_path: Path, target: Target) -> None:
    size = 5000 * MIB + 4 * KIB
    image = make_image(tmp_path / "long.qcow2", size)
    write(image, 1, (0, 10), (4097 * MIB, 10), (size - 4 * KIB, 4 * KIB))
    layer = RawLayer(tmp_path / "layer", 0)
    layer.size = size
    disk = arriving(layer, tmp_path / "target.digest", size=size, block_size=MIB)
    receipt = target.receive(disk, receiving(size=size, block_size=MIB))
    with served(tmp_path, image) as where:
        sender = Sender(where, tmp_path / "source.digest", size=size, block_size=MIB)
        assert run(receipt, sender) == (None, None)
    assert same_content(image, "qcow2", layer.path, "raw")
    assert checksum(tmp_path / "source.digest") == checksum(tmp_path / "target.digest")
