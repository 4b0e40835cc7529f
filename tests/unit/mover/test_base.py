"""What is known of the replica, less what must not be relied on, against a model of one value a block."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.model.extent import Extent, total
from understudy.mover.base import Doubted, PointDigests
from understudy.mover.digest import ZERO_DIGEST, DigestHeader, DigestReader, DigestWriter
from understudy.units import KIB

BLOCK = 64 * KIB
DIGESTS = [ZERO_DIGEST, b"1" * 16, b"2" * 16]


def digest_file(path: Path, digests: list[bytes], size: int) -> Path:
    with DigestWriter(path, DigestHeader(path.stem, size, BLOCK)) as writer:
        writer.put(0, b"".join(digests))
        writer.finish()
    return path


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(DIGESTS), st.sampled_from(DIGESTS)), min_size=1, max_size=20),
    st.integers(1, BLOCK // 512),
    st.lists(st.tuples(st.integers(0, 21 * BLOCK), st.integers(0, 3 * BLOCK)), max_size=3),
    st.booleans(), st.integers(0, 20), st.integers(0, 20),
)  # fmt: skip
def test_suspect_and_differing_blocks_are_doubtful_and_only_suspect_ones_unknown(
    tmp_path: Path, disk: list[tuple[bytes, bytes]], rest: int, places: list[tuple[int, int]], tracked_longer: bool,
    one: int, other: int,
) -> None:
    size = (len(disk) - 1) * BLOCK + rest * 512
    suspect = {index for index in range(len(disk)) for start, length in places
               if max(start, index * BLOCK) < min(start + length, (index + 1) * BLOCK, size)}
    with ExitStack() as stack:
        base = stack.enter_context(DigestReader(digest_file(tmp_path / "base", [new for _, new in disk], size)))
        since = stack.enter_context(DigestReader(digest_file(tmp_path / "since", [old for old, _ in disk], size)))
        ranges = sorted((Extent(start, length) for start, length in places), key=lambda area: area.start)
        known = Doubted(PointDigests(base, size), size, BLOCK, ranges, (since, base) if tracked_longer else None)
        expected = [None if index in suspect else new for index, (_, new) in enumerate(disk)]
        assert [known.known(index) for index in range(len(disk))] == expected
        first, last = sorted((min(one, len(disk) - 1), min(other, len(disk) - 1)))
        run = Extent(first * BLOCK, min((last + 1) * BLOCK, size) - first * BLOCK)
        inside = range(first, last + 1)
        _same_blocks(known.nonzero(run), [index for index in inside if expected[index] != ZERO_DIGEST], size)
        differing = {index for index, (old, new) in enumerate(disk) if tracked_longer and old != new}
        _same_blocks(known.doubtful(run), [index for index in inside if index in suspect | differing], size)
        assert known.kept(run) == []


def test_a_block_whose_length_changed_is_doubtful(tmp_path: Path) -> None:
    with DigestReader(digest_file(tmp_path / "base", [b"1" * 16] * 2, 2 * BLOCK - 512)) as reader:
        grown = PointDigests(reader, 3 * BLOCK)
        assert grown.doubtful(Extent(0, 3 * BLOCK)) == [Extent(BLOCK, BLOCK)]
        assert grown.doubtful(Extent(0, BLOCK)) == grown.doubtful(Extent(2 * BLOCK, BLOCK)) == []
        assert PointDigests(reader, 2 * BLOCK - 512).doubtful(Extent(0, 2 * BLOCK - 512)) == []


def _same_blocks(found: list[Extent], wanted: list[int], size: int) -> None:
    covered = [index for area in found for index in range(area.start // BLOCK, -(-area.end // BLOCK))]
    assert covered == wanted
    assert total(found) == sum(min(BLOCK, size - index * BLOCK) for index in wanted)
