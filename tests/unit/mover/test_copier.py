"""Copying between a real qemu-nbd and a layer in a raw file, in all modes, and its failures."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import RawLayer, add_bitmap, io, make_image, run, same_content, served, write
from understudy.context import Context
from understudy.errors import Cancelled, DatastoreError, Refused, TrackingLost, TransferError
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, ReadSpec
from understudy.mover.arriving import Arrival, ArrivingDisk
from understudy.mover.copier import Copying, DiskSink, check_base, copy_disk, known_content, plan_of
from understudy.mover.digest import DigestReader
from understudy.mover.exports import greets
from understudy.mover.meter import Counters, Meter
from understudy.mover.reader import Source
from understudy.mover.verify import Pass, rebuild_digests, verify_disk
from understudy.storage import Buffer
from understudy.storage.values import KeptLayer
from understudy.units import KIB, MIB

SIZE = 10 * MIB + 512


@dataclass
class Copied:
    """What a copy left."""

    layer: RawLayer
    digests: Path
    sums: Counters


def copy(
    tmp_path: Path, where: NbdSource, mode: TransferMode, *, before: Copied | None = None, base: bool = True,
    size: int = SIZE, block_size: int = MIB, ctx: Context | None = None,
    layer_type: Callable[[Path, int, bytes], RawLayer] = RawLayer,
) -> Copied:
    """One transfer; chained on ``before`` if that is given."""
    number = len(list(tmp_path.glob("layer*")))
    below = before.layer.path.read_bytes() if before else b""
    layer = layer_type(tmp_path / f"layer{number}.raw", size, below)
    base_point = "base" if before and base else ""
    read = ReadSpec(where, "vda", size, mode, block_size, before is not None, "r", base_point, "base")
    reader = DigestReader(before.digests) if before and base and mode is not TransferMode.FULL else None
    meter = Meter()
    path = tmp_path / f"digests{number}"
    try:
        start = check_base(read, reader)
        source = Source(where, size, tracked=mode is TransferMode.INCREMENTAL)
        try:
            with closing(ArrivingDisk(Arrival("vda", "base", size, block_size, layer, path, KeptLayer()))) as disk:
                disk.begin(start)
                copying = Copying(read, source, disk.content(known_content(read, start)), None, meter)
                plan = plan_of(copying)
                copy_disk(ctx or Context(), copying, plan, lambda counters: DiskSink(disk, plan, counters))
                disk.finish()
        finally:
            source.close()
    finally:
        if reader is not None:
            reader.close()
    return Copied(layer, path, meter.sums())


def check(tmp_path: Path, image: Path, copied: Copied) -> None:
    """The layer shows the image's bytes, and the digests are those of the image."""
    assert same_content(image, "qcow2", copied.layer.path, "raw")
    with served(tmp_path, image) as where, DigestReader(copied.digests) as digests:
        outcome = verify_disk(Context(), where, digests, Meter(), Pass())
        assert (outcome.bad, outcome.position) == ((), digests.header.size)
        rebuild_digests(Context(), where, digests.header, tmp_path / "rebuilt", Meter())
    with DigestReader(tmp_path / "rebuilt") as rebuilt:
        assert rebuilt.header.checksum == digests.header.checksum


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = make_image(tmp_path / "source.qcow2", SIZE)
    write(path, 1, (0, 4 * MIB), (6 * MIB, 2 * MIB), (SIZE - 512, 512))
    return path


def first(tmp_path: Path, image: Path, block_size: int = MIB) -> Copied:
    """A full copy."""
    with served(tmp_path, image) as where:
        return copy(tmp_path, where, TransferMode.FULL, block_size=block_size)


def test_a_full_copy_onto_nothing_writes_no_zeros(tmp_path: Path, image: Path) -> None:
    io(image, "write -P 0 4M 1M")
    copied = first(tmp_path, image)
    check(tmp_path, image, copied)
    assert copied.layer.zeroed == 0
    assert copied.sums.sent == copied.layer.written == 6 * MIB + 512
    assert copied.sums.zero == SIZE - copied.sums.sent


def test_a_full_copy_onto_a_layer_writes_every_zero(tmp_path: Path, image: Path) -> None:
    dirt = make_image(tmp_path / "other.qcow2", SIZE)
    write(dirt, 9, (0, SIZE))
    before = first(tmp_path, dirt)
    with served(tmp_path, image) as where:
        copied = copy(tmp_path, where, TransferMode.FULL, before=before)
    check(tmp_path, image, copied)
    assert copied.layer.written + copied.layer.zeroed == SIZE


@pytest.mark.parametrize("base", [True, False])
def test_a_digest_scan_repairs_anything(tmp_path: Path, image: Path, base: bool) -> None:
    before = first(tmp_path, image)
    write(image, 2, (512 * KIB, 4096), (5 * MIB, 10))
    io(image, f"write -z -u {6 * MIB} {MIB}", f"write -P 0 {7 * MIB} {64 * KIB}", f"discard {SIZE - 512} 512")
    with served(tmp_path, image) as where:
        copied = copy(tmp_path, where, TransferMode.DIGEST_SCAN, before=before, base=base)
    check(tmp_path, image, copied)
    if base:
        assert copied.layer.written == MIB + 64 * KIB + MIB - 64 * KIB


def test_an_unchanged_disk_sends_nothing(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    with served(tmp_path, image) as where:
        copied = copy(tmp_path, where, TransferMode.DIGEST_SCAN, before=before)
    assert copied.layer.calls == []
    check(tmp_path, image, copied)


def test_an_incremental_sends_only_changed_parts(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    add_bitmap(image, "b")
    write(image, 3, (MIB + 70 * KIB, 10), (3 * MIB - 1024, 2048))
    io(image, f"write -z -u {4 * MIB} {4 * MIB}", "write -P 0 0 64K")
    with served(tmp_path, image, bitmap="b") as where:
        copied = copy(tmp_path, where, TransferMode.INCREMENTAL, before=before)
    check(tmp_path, image, copied)
    assert copied.layer.written == 3 * 64 * KIB
    assert copied.layer.zeroed == 4 * MIB + 64 * KIB
    # Several blocks of zeros are one call: a trim of a terabyte must not be a million of them.
    assert ("zero", 4 * MIB, 4 * MIB) in copied.layer.calls


def test_what_was_written_again_without_change_is_not_sent(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    add_bitmap(image, "b")
    write(image, 1, (0, MIB))
    with served(tmp_path, image, bitmap="b") as where:
        copied = copy(tmp_path, where, TransferMode.INCREMENTAL, before=before)
    assert copied.sums.read == MIB
    assert copied.layer.calls == []


def test_a_grown_disk_is_scanned(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    grown = 15 * MIB + 1024
    run("qemu-img", "resize", "-q", image, str(grown))
    write(image, 4, (SIZE, 512), (13 * MIB, MIB))
    with served(tmp_path, image) as where:
        copied = copy(tmp_path, where, TransferMode.DIGEST_SCAN, before=before, size=grown)
    check(tmp_path, image, copied)
    assert copied.layer.written == 64 * KIB + MIB


def test_a_scan_with_other_blocks_does_without_the_base(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    with served(tmp_path, image) as where:
        copied = copy(tmp_path, where, TransferMode.DIGEST_SCAN, before=before, block_size=256 * KIB)
    check(tmp_path, image, copied)


def test_a_server_without_several_connections_is_read_by_one(tmp_path: Path, image: Path) -> None:
    import subprocess

    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", tmp_path / "one", "-f", "qcow2", "-x", "disk", image])
    try:
        while not greets(tmp_path / "one", 10.0):
            time.sleep(0.01)
        copied = copy(tmp_path, NbdSource(str(tmp_path / "one"), "disk", ""), TransferMode.FULL)
        assert same_content(image, "qcow2", copied.layer.path, "raw")
    finally:
        server.terminate()
        server.wait()


def test_an_incremental_without_its_base_is_refused(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    with served(tmp_path, image) as where:
        with pytest.raises(Refused, match="digest scan"):
            copy(tmp_path, where, TransferMode.INCREMENTAL, before=before, base=False)
        with pytest.raises(Refused, match="digest scan"):
            copy(tmp_path, where, TransferMode.INCREMENTAL, before=before, block_size=4 * MIB)
        with pytest.raises(Refused, match="stands alone"):
            copy(tmp_path, where, TransferMode.INCREMENTAL)


def test_a_missing_dirty_map_is_lost_tracking(tmp_path: Path, image: Path) -> None:
    before = first(tmp_path, image)
    with served(tmp_path, image) as where:
        lying = NbdSource(where.socket, where.export, "qemu:dirty-bitmap:gone")
        with pytest.raises(TrackingLost):
            copy(tmp_path, lying, TransferMode.INCREMENTAL, before=before)


def test_a_source_of_another_size_is_refused(tmp_path: Path, image: Path) -> None:
    with served(tmp_path, image) as where, pytest.raises(TransferError, match="expected"):
        copy(tmp_path, where, TransferMode.FULL, size=SIZE + 512)


class SlowLayer(RawLayer):
    """A layer that says when it is written to, and waits."""

    reached = threading.Event()

    def write_at(self, offset: int, data: Buffer) -> None:
        self.reached.set()
        time.sleep(0.05)
        super().write_at(offset, data)


class FullLayer(RawLayer):
    """A layer on a full datastore."""

    def write_at(self, offset: int, data: Buffer) -> None:
        if offset >= MIB:
            raise DatastoreError("write layer", "No space left on device")
        super().write_at(offset, data)


@contextmanager
def later(act: Callable[[], None]) -> Iterator[None]:
    """``act`` once a slow layer was written to."""
    SlowLayer.reached.clear()

    def wait() -> None:
        assert SlowLayer.reached.wait(20)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_full_datastore_ends_the_copy(tmp_path: Path, image: Path) -> None:
    with served(tmp_path, image) as where, pytest.raises(DatastoreError, match="No space"):
        copy(tmp_path, where, TransferMode.FULL, layer_type=FullLayer)


def test_a_source_that_dies_ends_the_copy(tmp_path: Path) -> None:
    from understudy.mover.api import OpenExport
    from understudy.mover.exports import Exports

    image = make_image(tmp_path / "big.qcow2", 64 * MIB)
    write(image, 1, (0, 64 * MIB))
    exports = Exports(tmp_path)
    key, where = exports.open(OpenExport(str(image), "qcow2", "", "t"))
    with later(lambda: exports.close(key)), pytest.raises(TransferError):
        copy(tmp_path, where, TransferMode.FULL, size=64 * MIB, layer_type=SlowLayer)
    exports.close_all()


def test_a_cancel_ends_the_copy_soon(tmp_path: Path) -> None:
    image = make_image(tmp_path / "big.qcow2", 64 * MIB)
    write(image, 1, (0, 64 * MIB))
    ctx = Context()
    with served(tmp_path, image) as where, later(ctx.cancel.cancel):
        started = time.monotonic()
        with pytest.raises(Cancelled):
            copy(tmp_path, where, TransferMode.FULL, size=64 * MIB, layer_type=SlowLayer, ctx=ctx)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("block_size", [256 * KIB, 512 * KIB, MIB, 4 * MIB])
@pytest.mark.parametrize("seed", range(3))
def test_random_histories_stay_equal(tmp_path: Path, image: Path, block_size: int, seed: int) -> None:
    dice = random.Random(seed)
    state = first(tmp_path, image, block_size=block_size)
    for step in range(4):
        add_bitmap(image, f"b{step}")
        for _ in range(dice.randint(0, 5)):
            offset = dice.randrange(0, SIZE, 512)
            length = min(dice.choice([512, 65536, 3 * MIB]), SIZE - offset)
            verb = dice.choice(["", "write -z", "write -z -u", "discard"])
            if verb:
                io(image, f"{verb} {offset} {length}")
            else:
                write(image, dice.randrange(1 << 30), (offset, length))
        mode = dice.choice([TransferMode.INCREMENTAL, TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN])
        with served(tmp_path, image, bitmap=f"b{step}") as where:
            state = copy(tmp_path, where, mode, before=state, block_size=block_size)
        assert same_content(image, "qcow2", state.layer.path, "raw")
    check(tmp_path, image, state)
