"""A pass over a disk goes on where it was stopped, reads no faster than it may, and says which blocks are bad."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import io, make_image, served, write
from understudy.context import Context
from understudy.errors import Cancelled
from understudy.model.extent import Extent
from understudy.mover import verify
from understudy.mover.digest import DigestHeader, DigestReader
from understudy.mover.meter import Meter
from understudy.mover.pace import Pace
from understudy.mover.verify import Found, Pass, rebuild_digests, verify_disk
from understudy.units import MIB

SIZE = 24 * MIB + 1024
DATA = ((0, 6 * MIB), (8 * MIB, 8 * MIB), (SIZE - 512, 512))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data, zeros, data, zeros, and a short last block with data."""
    path = make_image(tmp_path / "disk.qcow2", SIZE)
    write(path, 1, *DATA)
    return path


@pytest.fixture
def digests(tmp_path: Path, image: Path) -> Iterator[DigestReader]:
    with served(tmp_path, image) as where:
        rebuild_digests(Context(), where, DigestHeader("p1", SIZE, MIB), tmp_path / "digests", Meter())
    with DigestReader(tmp_path / "digests") as reader:
        yield reader


def passed(tmp_path: Path, image: Path, digests: DigestReader, wanted: Pass, ctx: Context | None = None) -> Found:
    with served(tmp_path, image) as where:
        return verify_disk(ctx or Context(), where, digests, Meter(), wanted)


def test_bad_blocks_are_found_in_data_and_zeros_and_at_the_end(
    tmp_path: Path, image: Path, digests: DigestReader
) -> None:
    assert passed(tmp_path, image, digests, Pass()) == Found(SIZE, (), 0)
    io(image, "write -P 7 1M 512", "write -P 7 6M 4096", "write -z -u 8M 2M", f"write -P 7 {SIZE - 512} 512")
    bad = (Extent(MIB, MIB), Extent(6 * MIB, MIB), Extent(8 * MIB, 2 * MIB), Extent(24 * MIB, 1024))
    assert passed(tmp_path, image, digests, Pass()) == Found(SIZE, bad, 5)


def test_what_lies_before_the_position_is_not_read_again_and_stays_as_it_was_found(
    tmp_path: Path, image: Path, digests: DigestReader
) -> None:
    io(image, "write -P 7 1M 512", "write -P 7 9M 512")
    known = (Extent(2 * MIB, MIB), Extent(11 * MIB, MIB), Extent(20 * MIB, MIB))
    meter = Meter()
    with served(tmp_path, image) as where:
        found = verify_disk(Context(), where, digests, meter, Pass(9 * MIB, known))
    assert found == Found(SIZE, (Extent(2 * MIB, MIB), Extent(9 * MIB, MIB)), 2)
    sums = meter.sums()
    assert (sums.processed, sums.saved, sums.read) == (SIZE, 9 * MIB, 7 * MIB + 1024)


def test_a_position_inside_zeros_is_no_obstacle(tmp_path: Path, image: Path, digests: DigestReader) -> None:
    assert passed(tmp_path, image, digests, Pass(7 * MIB)) == Found(SIZE, (), 0)
    assert passed(tmp_path, image, digests, Pass(SIZE)) == Found(SIZE, (), 0)


def test_recomputed_digests_clear_nobody(tmp_path: Path, image: Path, digests: DigestReader) -> None:
    known = (Extent(2 * MIB, MIB), Extent(20 * MIB, MIB))
    assert passed(tmp_path, image, digests, Pass(bad=known, keep_bad=True)).bad == known
    assert passed(tmp_path, image, digests, Pass(bad=known)).bad == ()


def test_a_pass_that_is_stopped_anywhere_goes_on_and_misses_nothing(
    tmp_path: Path, image: Path, digests: DigestReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SAVE_BYTES", MIB)
    io(image, "write -P 7 1M 512", "write -P 7 10M 512", "write -P 7 15M 512")
    done, calls = Found(0, (), 0), 0
    while done.position < SIZE:
        ctx = Context()
        saved: list[Found] = []

        def save(found: Found, ctx: Context = ctx, saved: list[Found] = saved) -> None:
            saved.append(found)
            if len(saved) == 2:
                ctx.cancel.cancel()

        try:
            passed(tmp_path, image, digests, Pass(done.position, done.bad, pace=Pace(20 * MIB), save=save), ctx)
        except Cancelled:
            calls += 1
        assert [found.position for found in saved] == sorted(found.position for found in saved)
        assert saved[-1].position > done.position
        done = saved[-1]
    assert calls >= 1
    assert done.bad == (Extent(MIB, MIB), Extent(10 * MIB, MIB), Extent(15 * MIB, MIB))


def test_a_pass_that_fails_says_how_far_it_came(
    tmp_path: Path, image: Path, digests: DigestReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SAVE_BYTES", MIB)
    seen: list[Found] = []

    def save(found: Found) -> None:
        seen.append(found)
        if len(seen) == 1:
            raise Cancelled("x", "y")

    with pytest.raises(Cancelled):
        passed(tmp_path, image, digests, Pass(save=save))
    assert seen[-1].position >= seen[0].position >= MIB


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        with self.lock:
            self.now += seconds
        return False


def slow_context(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Context:
    ctx = Context()
    monkeypatch.setattr(ctx.cancel, "wait", clock.wait)
    return ctx


def test_reads_pass_at_the_rate_and_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ctx, pace = slow_context(clock, monkeypatch), Pace(10 * MIB, clock)
    for _ in range(101):
        pace.wait(ctx, MIB)
    assert clock.now - 100.0 == pytest.approx(10.0, rel=0.001)
    clock.now += 1000.0
    for _ in range(11):
        pace.wait(ctx, MIB)
    assert clock.now - 1110.0 == pytest.approx(1.0, rel=0.001), "a pause is no credit"
    Pace(0, clock).wait(ctx, 1 << 50)
    assert clock.now - 1110.0 == pytest.approx(1.0, rel=0.001)


def test_waiting_for_the_rate_ends_with_a_cancel() -> None:
    ctx = Context()
    pace = Pace(1)
    pace.wait(ctx, MIB)
    threading.Timer(0.05, ctx.cancel.cancel).start()
    with pytest.raises(Cancelled):
        pace.wait(ctx, MIB)


class Counting(Pace):
    """Counts what was let pass."""

    def __init__(self) -> None:
        super().__init__(0)
        self.passed: list[int] = []

    def wait(self, ctx: Context, length: int) -> None:
        self.passed.append(length)


def test_what_is_read_is_what_was_let_pass(tmp_path: Path, image: Path, digests: DigestReader) -> None:
    pace, meter = Counting(), Meter()
    with served(tmp_path, image) as where:
        verify_disk(Context(), where, digests, meter, Pass(pace=pace))
    assert sum(pace.passed) == meter.sums().read == 14 * MIB + 1024
    assert max(pace.passed) == MIB
