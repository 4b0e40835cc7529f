"""Sets of blocks, and claims on top of a base, against models made of plain sets and dictionaries."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.model.extent import Extent, total
from understudy.mover.blocks import BlockSet
from understudy.mover.claims import Claims
from understudy.mover.digest import ZERO_DIGEST
from understudy.units import KIB

BLOCK = 64 * KIB


def runs_of(numbers: set[int]) -> list[tuple[int, int]]:
    """First number and count of each run."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and sum(found[-1]) == number:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((number, 1))
    return found


Acts = list[tuple[bool, int, int]]


@given(st.integers(1, 200_000), st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0, 1)), max_size=12))
@settings(max_examples=60)
def test_a_set_of_blocks_is_what_its_model_is(blocks: int, acts: list[tuple[bool, float, float]]) -> None:
    _compare(blocks, [(add, int(at * (blocks - 1)), int(share * blocks)) for add, at, share in acts])


@given(st.integers(1, 70), st.lists(st.tuples(st.booleans(), st.integers(0, 69), st.integers(0, 70)), max_size=20))
@settings(max_examples=300)
def test_a_small_set_of_blocks_is_what_its_model_is(blocks: int, acts: Acts) -> None:
    _compare(blocks, [(add, min(first, blocks - 1), count) for add, first, count in acts])


def _compare(blocks: int, acts: Acts) -> None:
    found, model = BlockSet(blocks), set[int]()
    for add, first, wanted in acts:
        count = min(wanted, blocks - first)
        numbers = range(first, first + count)
        if add:
            found.add(first, count)
            model.update(numbers)
        else:
            found.discard(first, count)
            model.difference_update(numbers)
        assert len(found) == len(model)
        assert list(found.runs(0, blocks)) == runs_of(model)
        assert list(found.runs(first, first + count)) == runs_of(model.intersection(numbers))
    assert all((number in found) == (number in model) for number in range(min(blocks, 5000)))


class Below:
    """What is known of the layers below: a digest or None for each block."""

    def __init__(self, digests: list[bytes | None], size: int) -> None:
        self._digests, self._size = digests, size

    def known(self, index: int) -> bytes | None:
        return self._digests[index]

    def nonzero(self, run: Extent) -> list[Extent]:
        numbers = range(run.start // BLOCK, -(-run.end // BLOCK))
        return [Extent(number * BLOCK, min(BLOCK, self._size - number * BLOCK))
                for number in numbers if self._digests[number] != ZERO_DIGEST]

    def kept(self, run: Extent) -> list[Extent]:
        return []

    def doubtful(self, run: Extent) -> list[Extent]:
        return []


DIGESTS = [ZERO_DIGEST, b"1" * 16, b"2" * 16]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from([*DIGESTS, None]), st.sampled_from(["", "claimed", "unknown"]),
                       st.sampled_from(DIGESTS)), min_size=1, max_size=20),
    st.integers(1, BLOCK // 512), st.integers(0, 20), st.integers(0, 20),
)
def test_claims_lie_over_what_is_known_below(
    disk: list[tuple[bytes | None, str, bytes]], rest: int, one: int, other: int
) -> None:
    blocks = len(disk)
    size = (blocks - 1) * BLOCK + rest * 512
    claims = Claims(Below([below for below, _, _ in disk], size), size, BLOCK, lambda index: disk[index][2])
    for index, (_, state, _) in enumerate(disk):
        if state:
            claims.touched.add(index)
        if state == "claimed":
            claims.claimed.add(index)
    model = [{"": below, "claimed": claimed, "unknown": None}[state] for below, state, claimed in disk]
    assert [claims.known(index) for index in range(blocks)] == model
    first, last = sorted((min(one, blocks - 1), min(other, blocks - 1)))
    end = min((last + 1) * BLOCK, size)
    run = Extent(first * BLOCK, end - first * BLOCK)
    touched = [index for index in range(first, last + 1) if disk[index][1]]
    _same_blocks(claims.kept(run), touched, size)
    _same_blocks(claims.nonzero(run), [index for index in range(first, last + 1) if model[index] != ZERO_DIGEST], size)


def _same_blocks(found: list[Extent], wanted: list[int], size: int) -> None:
    """The extents are exactly these blocks, in order, without overlap."""
    assert found == sorted(found, key=lambda extent: extent.start)
    covered = [index for extent in found for index in range(extent.start // BLOCK, -(-extent.end // BLOCK))]
    assert covered == wanted
    assert total(found) == sum(min(BLOCK, size - index * BLOCK) for index in wanted)
