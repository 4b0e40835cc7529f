"""Counting what tracking conceals, against a naive model, with a server that answers for less than asked."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mover.test_plan import BLOCK, UNIT, Server, disks
from understudy.model.extent import Extent
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource, ReadSpec
from understudy.mover.audit import TrackingAudit, audit_of
from understudy.mover.base import NothingKnown
from understudy.mover.digest import ZERO_DIGEST, DigestReader
from understudy.mover.meter import Counters, Meter
from understudy.mover.plan import Plan, PlanSpec, ReadBlock, Skipped

SCAN = TransferMode.DIGEST_SCAN
DIGESTS = (ZERO_DIGEST, b"1" * 16, b"2" * 16)


class Below(NothingKnown):
    """A replica with these digests; some of them are doubtful."""

    def __init__(self, digests: Sequence[bytes], size: int, doubts: set[int]) -> None:
        self._digests, self._size, self._doubts = digests, size, doubts

    def known(self, index: int) -> bytes:  # type: ignore[override]
        return self._digests[index]

    def nonzero(self, run: Extent) -> list[Extent]:
        return self._those(run, {index for index, digest in enumerate(self._digests) if digest != ZERO_DIGEST})

    def doubtful(self, run: Extent) -> list[Extent]:
        return self._those(run, self._doubts)

    def _those(self, run: Extent, indexes: set[int]) -> list[Extent]:
        inside = [index for index in sorted(indexes) if run.start <= index * BLOCK < run.end]
        return [Extent(index * BLOCK, min(BLOCK, self._size - index * BLOCK)) for index in inside]


def read_spec(size: int, mode: TransferMode = SCAN, dirty_context: str = "dirty") -> ReadSpec:
    return ReadSpec(NbdSource("/s", "x", dirty_context), "vda", size, mode, BLOCK, True, "r", "p0", "p1")


@settings(max_examples=300)
@given(
    disks(), st.lists(st.sampled_from(DIGESTS), min_size=6, max_size=6),
    st.lists(st.sampled_from(DIGESTS), min_size=6, max_size=6), st.sets(st.integers(0, 5)),
)  # fmt: skip
def test_every_clean_block_that_is_not_doubtful_counts_once(
    disk: tuple[int, set[int], set[int], int], before: list[bytes], now: list[bytes], doubts: set[int]
) -> None:
    size, zero, dirty, seed = disk
    meter, below = Meter(), Below(before, size, doubts)
    audit = TrackingAudit(read_spec(size), Server(size, zero, dirty, seed), below, meter)
    plan = Plan(PlanSpec(size, BLOCK, SCAN, True, "dirty"), audit, below, Counters())
    while (item := plan.take()) is not None:
        if isinstance(item, ReadBlock):
            for _ in range(2):  # lost on the way, and so read once more
                audit.block(item.index, now[item.index])
        if not isinstance(item, Skipped):
            plan.done([item])
    checked = mismatched = 0
    for index in range(-(-size // BLOCK)):
        units = set(range(index * BLOCK // UNIT, -(-min((index + 1) * BLOCK, size) // UNIT)))
        if not units & dirty and index not in doubts:
            checked += 1
            mismatched += before[index] != (ZERO_DIGEST if units <= zero else now[index])
    sums = meter.sums()
    assert (sums.checked, sums.mismatched) == (checked, mismatched)


def test_only_a_scan_with_a_base_and_a_dirty_map_is_audited() -> None:
    server = Server(BLOCK, set(), set(), 1)
    base = object.__new__(DigestReader)  # only whether there is one matters
    cases = [(base, SCAN, "dirty"), (None, SCAN, "dirty"), (base, SCAN, ""), (base, TransferMode.INCREMENTAL, "dirty")]
    made = [audit_of(read_spec(BLOCK, mode, context), server, start, NothingKnown(), Meter()) is not None
            for start, mode, context in cases]  # fmt: skip
    assert made == [True, False, False, False]
