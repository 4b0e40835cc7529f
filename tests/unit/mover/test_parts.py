"""Only the 64 KiB parts that differ travel in a digest scan, and nothing is missed, whatever becomes of the base."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mover.scan_lab import Scan, answered, asked
from tests.unit.mover.wire_lab import BLOCK, Relay, Target
from understudy.model.extent import PART, Extent, total
from understudy.mover import outgoing
from understudy.mover.digest import DIGEST_BYTES, ZERO_DIGEST, block_digest
from understudy.mover.parts import different_content, different_digests, every_part, narrowed, part_digests
from understudy.mover.plan import ReadBlock
from understudy.units import KIB, MIB

CHANGES = st.sets(st.integers(0, 4))


@given(CHANGES, st.integers(4 * PART + 1, 5 * PART))
def test_digests_and_bytes_name_the_same_parts(changed: set[int], length: int) -> None:
    old = bytearray(b"\1" * PART + bytes(PART) + b"\2" * (length - 2 * PART))
    new = bytearray(old)
    for part in changed:
        new[min((part + 1) * PART, length) - 1] ^= 7
    expected = sum(1 << part for part in changed)
    assert different_digests(part_digests(memoryview(old)), part_digests(memoryview(new))) == expected
    assert different_content(old.ljust(8 * PART, b"?"), memoryview(new)) == expected


def test_a_part_of_zeros_has_a_digest_of_zeros() -> None:
    view = memoryview(bytes(PART) + b"x" * PART + bytes(512))
    assert part_digests(view) == ZERO_DIGEST + block_digest(view[PART : 2 * PART]) + ZERO_DIGEST
    assert len(part_digests(memoryview(bytes(4 * MIB)))) == 64 * DIGEST_BYTES == KIB


@given(st.integers(0, 31), st.integers(4 * PART + 1, 5 * PART))
def test_a_narrowed_item_wants_these_parts_and_is_vague_no_more(parts: int, length: int) -> None:
    block = Extent(10 * PART, length)
    item = ReadBlock(block, 2, (block,), vague=True)
    small = narrowed(item, parts)
    assert (small.block, small.index, small.kept, small.vague) == (block, 2, False, False)
    parts = parts or every_part(length)
    expected = [Extent(block.start + n * PART, min(PART, length - n * PART)) for n in range(5) if parts >> n & 1]
    assert total(small.wanted) == total(expected)
    assert all(any(part.start <= one.start and one.end <= part.end for part in small.wanted) for one in expected)
    assert narrowed(item, every_part(length)).wanted == (block,)


@pytest.mark.parametrize("block_size", [256 * KIB, MIB, 4 * MIB])
@pytest.mark.parametrize("connections", [1, 4])
def test_exactly_the_changed_parts_travel(
    tmp_path: Path, target: Target, relay: Relay, block_size: int, connections: int
) -> None:
    scan = Scan(tmp_path, target, size=9 * MIB + 96 * KIB + 512, block_size=block_size)
    base = scan.replicated()
    scan.change(0, 5, 6, 63, 100, 145)  # the last is the 32.5 KiB at the end
    with scan.scanning(base, relay, connections):
        sums = scan.check()
        assert base.stopped, "the base is let go with the transfer, not with the draft"
    assert scan.written() == [0, 5, 6, 63, 100, 145]
    assert sums.sent == 5 * PART + 32 * KIB + 512
    blocks = {part * PART // block_size * block_size for part in (0, 5, 6, 63, 100, 145)}
    assert sorted(asked(relay)) == sorted(answered(relay)) == sorted(base.reads) == sorted(blocks)
    assert sums.read == scan.size + sum(min(block_size, scan.size - start) for start in blocks)
    assert sums.wire < sums.sent + 40 * KIB


def test_an_unchanged_disk_sends_nothing(tmp_path: Path, target: Target, relay: Relay) -> None:
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    with scan.scanning(base, relay):
        sums = scan.check()
    assert (sums.sent, scan.layer.calls, asked(relay), base.reads) == (0, [], [], [])


def test_zeros_travel_as_zeros_and_only_where_they_are_new(tmp_path: Path, target: Target, relay: Relay) -> None:
    scan = Scan(tmp_path, target)
    scan.content[PART : 2 * PART] = bytes(PART)
    scan.content[2 * BLOCK : 3 * BLOCK] = bytes(BLOCK)
    base = scan.replicated()
    scan.change(0)
    scan.content[3 * PART : 4 * PART] = bytes(PART)
    scan.content[4 * BLOCK : 5 * BLOCK] = bytes(BLOCK)
    scan.content[2 * BLOCK + PART] = 1
    with scan.scanning(base, relay):
        sums = scan.check()
    assert scan.written() == [0, 2 * BLOCK // PART + 1]
    assert sums.sent == 2 * PART
    zeroed = [(offset, length) for act, offset, length in scan.layer.calls if act == "zero"]
    assert (3 * PART, PART) in zeroed
    assert (PART, PART) not in zeroed
    # Of a block that is zero, or was, it is known without asking.
    assert asked(relay) == [0]


def test_a_base_that_cannot_be_read_costs_whole_blocks(tmp_path: Path, target: Target, relay: Relay) -> None:
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    base.readable = False
    scan.change(9)
    with scan.scanning(base, relay):
        sums = scan.check()
    assert sums.sent == BLOCK
    assert answered(relay) == [2 * BLOCK]


def test_a_target_without_a_base_answers_all_the_same(tmp_path: Path, target: Target) -> None:
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    scan.change(9)
    scan.knows_base = False
    with scan.scanning(base):
        assert scan.check().sent == BLOCK


def test_a_part_that_rotted_in_the_base_is_sent_too(tmp_path: Path, target: Target) -> None:
    """The answer is of what the base holds, not of what its digests say."""
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    base.content[11 * PART + 7] ^= 1
    scan.change(9)
    with scan.scanning(base):
        scan.check()
    assert scan.written() == [9, 11]


def test_a_base_that_has_the_change_already_gets_the_whole_block(tmp_path: Path, target: Target) -> None:
    """Its digests are of something else than it holds: a block with a digest of its own is in the layer, always."""
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    scan.change(9)
    base.content = bytearray(scan.content)
    with scan.scanning(base):
        assert scan.check().sent == BLOCK


def test_blocks_of_one_part_are_not_asked_about(tmp_path: Path, target: Target, relay: Relay) -> None:
    scan = Scan(tmp_path, target, block_size=PART)
    base = scan.replicated()
    scan.change(9, 80)
    with scan.scanning(base, relay):
        assert scan.check().sent == PART + 512
    assert asked(relay) == []


def test_no_more_is_asked_than_may_be_under_way(
    tmp_path: Path, target: Target, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "WINDOW", 3 * BLOCK)
    scan = Scan(tmp_path, target)
    base = scan.replicated()
    base.open.clear()
    changed = [4 * block for block in range(20)]
    scan.change(*changed)
    with scan.scanning(base, relay, 3) as sender:
        assert base.waits.wait(20)
        waited = threading.Event()
        waited.wait(0.7)
        # What is under way may pass the limit by one block on each lane.
        assert len(asked(relay)) <= 3 + 3
        base.open.set()
        scan.check()
        assert sender.side.error is None
    assert scan.written() == changed
    assert scan.layer.written == 20 * PART
