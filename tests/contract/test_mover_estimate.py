"""Estimates by a real mover of what transfers of the same disk then do, for random histories and one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_mover_excluded import (
    BLOCK,
    FULL,
    INCREMENTAL,
    PARTS,
    SCAN,
    SIZE,
    Masked,
    change,
    numbers,
    parts,
)
from tests.unit.mover.mover_lab import add_bitmap, io, make_image, write
from understudy.errors import ReplicaError, TrackingLost, UsageError, from_fields
from understudy.model.estimate import Sums
from understudy.model.extent import PART, Extent, total
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess


@dataclass
class Estimated(Masked):
    """A lab that asks for an estimate of each transfer just before it."""

    sums: Sums | None = None

    def carry(self, read: api.ReadSpec, request_of: Callable[[api.ReadSpec], object]) -> api.Progress:
        self.sums = self.estimate(read)
        return super().carry(read, request_of)

    def estimate(self, read: api.ReadSpec) -> Sums:
        work = self.source.client.call(api.EstimateTransfer(read), api.WorkStarted).work
        status = self.source.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        if status.error is not None:
            raise from_fields(status.error.code, status.error.what, status.error.why, status.error.todo)
        assert status.sums is not None
        assert status.progress.read == 0
        return status.sums

    def compared(self, mode: TransferMode, bitmap: str = "") -> tuple[Sums, api.Progress]:
        """A session, and what was said of it before; what holds for all of them holds for it."""
        progress = self.replicate(mode, bitmap)
        sums = self.sums
        assert sums is not None
        assert sums.used + sums.zero + total(self.excluded) == SIZE
        if mode is SCAN:  # a block that differs is read again when the target has said in which of its parts
            assert sums.read <= progress.read <= 2 * sums.read
        else:
            assert sums.read == progress.read
        assert sums.send >= progress.sent
        assert (sums.changed is None) == (mode is not INCREMENTAL)
        return sums, progress


@pytest.fixture(scope="module")
def movers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MoverProcess, MoverProcess]]:
    base = tmp_path_factory.mktemp("movers")
    with (
        MoverProcess("source", base / "s", base / "source-state", base / "source.log") as source,
        MoverProcess("target", base / "t", base / "target-state", base / "target.log") as target,
    ):
        yield source, target


def make_lab(movers: tuple[MoverProcess, MoverProcess], place: Path, excluded: tuple[Extent, ...]) -> Estimated:
    """A source with data in its first half, and no replica yet."""
    (place / "ds").mkdir(parents=True)
    image = make_image(place / "source.qcow2", SIZE)
    write(image, 1, (0, SIZE // 2 // PART * PART))
    return Estimated(*movers, place, image, excluded=excluded)


def data_parts(content: bytes) -> int:
    """Bytes of the 64 KiB parts that hold anything."""
    found = [content[start : start + PART] for start in range(0, len(content), PART)]
    return sum(len(part) for part in found if any(part))


@settings(max_examples=5)
@given(first=numbers, cycles=st.lists(
    st.tuples(st.lists(st.tuples(st.sampled_from(["write", "zero", "discard"]), st.integers(0, SIZE // 512 - 1),
                                 st.integers(1, 1200)), max_size=4),
              numbers, st.sampled_from([INCREMENTAL, INCREMENTAL, SCAN, FULL]), st.booleans()),
    min_size=2, max_size=3))  # fmt: skip
def test_a_transfer_reads_what_was_estimated_and_sends_no_more(
    movers: tuple[MoverProcess, MoverProcess], tmp_path_factory: pytest.TempPathFactory, first: tuple[Extent, ...],
    cycles: list[tuple[list[tuple[str, int, int]], tuple[Extent, ...], TransferMode, bool]],
) -> None:
    place = tmp_path_factory.mktemp("history")
    lab = make_lab(movers, place, first)
    sums, progress = lab.compared(FULL)
    assert sums.send == progress.sent == data_parts(lab.snapshot())
    add_bitmap(lab.image, "b")
    seed = 100
    for acts, excluded, mode, standalone in cycles:
        for act, sector, count in acts:
            seed += 1
            change(lab.image, act, sector * 512, min(count * 512, SIZE - sector * 512), seed)
        lab.excluded, lab.standalone = excluded, standalone
        mode = FULL if standalone else mode
        _, progress = lab.compared(mode, "b" if mode is not FULL else "")
        if mode is FULL:
            assert progress.sent == data_parts(lab.snapshot())
        lab.track()
        lab.check()
    shutil.rmtree(place)


def test_an_estimate_of_an_incremental_is_exact_where_data_was_written(
    movers: tuple[MoverProcess, MoverProcess], tmp_path: Path
) -> None:
    lab = make_lab(movers, tmp_path, parts(*range(6, 22)))
    lab.compared(FULL)
    add_bitmap(lab.image, "b")
    sums, progress = lab.compared(INCREMENTAL, "b")
    assert (sums.changed, sums.read, sums.send) == (0, 0, 0)
    lab.track()
    write(lab.image, 2, (10 * PART, 4 * PART), (30 * PART, 3 * PART))  # the former is left out
    io(lab.image, f"discard {2 * PART} {PART}")
    sums, progress = lab.compared(INCREMENTAL, "b")
    assert (sums.changed, sums.send, progress.sent) == (4 * PART, 3 * PART, 3 * PART)
    assert sums.read == 2 * BLOCK + BLOCK * (32 * PART // BLOCK != 30 * PART // BLOCK)
    lab.track()
    lab.excluded = parts(*range(8, 22), 40)  # two parts leave it, and one that is not allocated enters it
    sums, progress = lab.compared(INCREMENTAL, "b")
    assert (sums.changed, sums.send, progress.sent) == (3 * PART, 2 * PART, 2 * PART)
    lab.check()


def test_an_estimate_leaves_no_trace_at_the_proxy_and_says_what_is_in_its_way(
    movers: tuple[MoverProcess, MoverProcess], tmp_path: Path
) -> None:
    lab = make_lab(movers, tmp_path, ())
    lab.compared(FULL)
    state = movers[0].client.call(api.ListCopies(), api.DigestCopyList)
    opened = lab.source.client.call(api.OpenExport(str(lab.image), "qcow2", "", "t"), api.OpenedExport)
    read = api.ReadSpec(opened.source, "vda", SIZE, FULL, BLOCK, False, lab.replica_id, "", "p9")
    assert lab.estimate(read).read == PARTS // 2 * PART // BLOCK * BLOCK + BLOCK * bool(PARTS // 2 * PART % BLOCK)
    chained = api.ReadSpec(opened.source, "vda", SIZE, INCREMENTAL, BLOCK, True, lab.replica_id, lab.points[-1], "p9")
    with pytest.raises(TrackingLost):
        lab.estimate(chained)
    with pytest.raises(ReplicaError):
        lab.estimate(api.ReadSpec(opened.source, "vda", SIZE, SCAN, BLOCK, True, lab.replica_id, "p7777", "p9"))
    for wrong in (api.ReadSpec(opened.source, "vda", SIZE, FULL, 12345, False, "r", "", "p9"),
                  api.ReadSpec(opened.source, "vda", SIZE, FULL, BLOCK, False, "r", "", "p9", excluded="nonsense")):
        with pytest.raises(UsageError):
            lab.estimate(wrong)
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    assert movers[0].client.call(api.ListCopies(), api.DigestCopyList) == state
