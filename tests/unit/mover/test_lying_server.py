"""Block status as a broken or lying server gives it is an error or a map that tiles what was asked; no byte is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.mover.nbd_server import lying_server
from understudy.errors import TransferError
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover.base import NothingKnown
from understudy.mover.meter import Counters
from understudy.mover.plan import Plan, PlanSpec, ReadBlock, Skipped, ZeroRun
from understudy.nbd import ALLOCATION, DIRTY_FLAG, ZERO_FLAG, NbdClient
from understudy.units import GIB, KIB, MIB

SIZE = 3 * MIB + 512
BLOCK = 256 * KIB
DIRTY = "qemu:dirty-bitmap:us"
Chunks = list[tuple[str, list[tuple[int, int]]]]

LENGTHS = st.sampled_from([0, 1, 511, 512, 64 * KIB, BLOCK, 3 * BLOCK, SIZE, SIZE + 512, GIB, (1 << 32) - 1])
PAIRS = st.lists(st.tuples(LENGTHS, st.sampled_from([0, 1, 2, 3, 1 << 31])), max_size=8)
NAMES = st.sampled_from([ALLOCATION, ALLOCATION, DIRTY, DIRTY, "another"])
ANSWERS = st.lists(st.lists(st.tuples(NAMES, PAIRS), max_size=4), min_size=1, max_size=4)
RUNS = st.lists(st.tuples(st.integers(0, SIZE // 512), st.integers(1, 900)), max_size=5)
ODD = st.lists(st.sampled_from([1, 512, 4096 + 1, 64 * KIB, BLOCK, SIZE, (1 << 32) - 1]), min_size=1, max_size=5)


class _Export:
    """What a plan asks, from one connection."""

    def __init__(self, client: NbdClient) -> None:
        self.statuses = client.statuses

    def allocation(self, run: Extent) -> list[Extent]:
        return self.statuses(run.start, run.length, run.length)[1][ALLOCATION]


class _Script:
    """Gives the drawn answers in turn, the last one for ever."""

    def __init__(self, answers: list[Chunks]) -> None:
        self._answers = answers
        self.asked = 0

    def __call__(
        self, contexts: dict[str, int], offset: int, length: int
    ) -> list[tuple[int, list[tuple[int, int]]]]:
        chunks = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if self.asked > 500:
            raise OSError("enough: a server that tells a byte at a time is slow, and no more")
        return [(contexts.get(name, 99), pairs) for name, pairs in chunks]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=ANSWERS, start=st.integers(0, 4), at_least=st.integers(1, BLOCK))
def test_statuses_tile_what_was_asked_or_are_an_error(
    tmp_path: Path, answers: list[Chunks], start: int, at_least: int
) -> None:
    begin = start * BLOCK
    with lying_server(tmp_path / "s", SIZE, _Script(answers)), \
            NbdClient(str(tmp_path / "s"), "x", (ALLOCATION, DIRTY)) as client:
        try:
            known, statuses = client.statuses(begin, SIZE - begin, at_least)
        except TransferError:
            client.abort()
            return
    assert at_least <= known <= SIZE - begin
    assert set(statuses) == {ALLOCATION, DIRTY}
    for extents in statuses.values():
        position = begin
        for extent in extents:
            assert (extent.start, extent.length > 0) == (position, True)
            position = extent.end
        assert position == begin + known


class _Rough:
    """Tells the truth in pieces of odd lengths, other ones for each context: any dirty byte makes a piece dirty."""

    def __init__(self, zero: list[tuple[int, int]], dirty: list[tuple[int, int]], lengths: list[int]) -> None:
        self._zero, self.dirty = _sectors(zero), _sectors(dirty)
        self._lengths = lengths

    def __call__(
        self, contexts: dict[str, int], offset: int, length: int
    ) -> list[tuple[int, list[tuple[int, int]]]]:
        found: dict[str, list[tuple[int, int]]] = {ALLOCATION: [], DIRTY: []}
        for name, lengths in ((ALLOCATION, self._lengths), (DIRTY, self._lengths[::-1])):
            position = offset
            # A server that tells a byte at a time is slow, and no more: a long piece ends each answer.
            for size in (*lengths, 64 * KIB):
                sectors = set(range(position // 512, min(-(-(position + size) // 512), -(-SIZE // 512))))
                flag = ZERO_FLAG if sectors <= self._zero else 0
                if name == DIRTY:
                    flag = DIRTY_FLAG if sectors & self.dirty else 0
                found[name].append((size, flag))
                position += size
                if position >= SIZE:
                    break
        return [(contexts[name], pairs) for name, pairs in found.items()]


def _sectors(runs: list[tuple[int, int]]) -> set[int]:
    return {sector for start, count in runs for sector in range(start, min(start + count, -(-SIZE // 512)))}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(zero=RUNS, dirty=RUNS, lengths=ODD, mode=st.sampled_from([TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN]))
def test_a_plan_from_odd_answers_reads_or_zeroes_every_byte_that_is_dirty(
    tmp_path: Path, zero: list[tuple[int, int]], dirty: list[tuple[int, int]], lengths: list[int], mode: TransferMode
) -> None:
    server = _Rough(zero, dirty, lengths)
    covered: set[int] = set()
    with lying_server(tmp_path / "s", SIZE, server), \
            NbdClient(str(tmp_path / "s"), "x", (ALLOCATION, DIRTY)) as client:
        plan = Plan(PlanSpec(SIZE, BLOCK, mode, True, DIRTY), _Export(client), NothingKnown(), Counters())
        while (item := plan.take()) is not None:
            if isinstance(item, ReadBlock | ZeroRun):
                for part in item.wanted if isinstance(item, ReadBlock) else (item.run,):
                    covered |= set(range(part.start // 512, -(-part.end // 512)))
                plan.done([item])
    assert plan.imbalance() == ""
    everything = set(range(-(-SIZE // 512)))
    assert covered >= (server.dirty if mode is TransferMode.INCREMENTAL else everything)


def test_a_context_without_an_answer_is_an_error(tmp_path: Path) -> None:
    with lying_server(tmp_path / "s", SIZE, _Script([[(ALLOCATION, [(SIZE, 0)])]])), \
            NbdClient(str(tmp_path / "s"), "x", (ALLOCATION, DIRTY)) as client, \
            pytest.raises(TransferError, match=f"no answer for context {DIRTY}"):
        client.statuses(0, SIZE, BLOCK)


def test_a_skipped_range_is_never_one_that_was_called_dirty_beyond_the_end(tmp_path: Path) -> None:
    script = _Script([[(ALLOCATION, [((1 << 32) - 1, 0)]), (DIRTY, [((1 << 32) - 1, 1)])]])
    with lying_server(tmp_path / "s", SIZE, script), \
            NbdClient(str(tmp_path / "s"), "x", (ALLOCATION, DIRTY)) as client:
        spec = PlanSpec(SIZE, BLOCK, TransferMode.INCREMENTAL, True, DIRTY)
        plan = Plan(spec, _Export(client), NothingKnown(), Counters())
        items = list(iter(plan.take, None))
    assert [item for item in items if isinstance(item, Skipped)] == [Skipped(0, 0)]
    assert sum(item.block.length for item in items if isinstance(item, ReadBlock)) == SIZE
