"""The journal: whatever happened to it, it never tells what was not recorded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.model.extent import Extent, merge
from understudy.storage.qcow2.format import CLUSTER, ENTRIES_PER_TABLE, first_clusters
from understudy.storage.qcow2.journal import Journal, JournalHeader, Recorded, read_journal

SIZE = 40 * ENTRIES_PER_TABLE * CLUSTER + 512
HEADER = JournalHeader("p1", SIZE, "vda-p0.qcow2", "job ü 1")
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

State = tuple[int, dict[int, int], tuple[Extent, ...]]


def fill(path: Path, seed: int, records: int = 6) -> list[State]:
    """Make a journal; what it tells after each of its records, the header first."""
    rng = random.Random(seed)
    journal = Journal.begin(path, HEADER)
    clusters, known, complete = first_clusters(SIZE), dict[int, int](), list[Extent]()
    states: list[State] = [(clusters, {}, ())]
    for _ in range(records):
        grown = clusters + rng.randrange(9)
        free = iter(range(clusters, grown))
        tables = {index: place * CLUSTER for index, place in zip(rng.sample(range(41), 3), free, strict=False)
                  if index not in known}
        starts = sorted(rng.sample(range(40 * ENTRIES_PER_TABLE), rng.randrange(4)))
        ranges = merge(Extent(start * CLUSTER, rng.randint(1, 4) * CLUSTER) for start in starts)
        journal.append(grown, tables, ranges)
        clusters, known = grown, known | tables
        complete = merge(sorted(complete + ranges, key=lambda item: item.start))
        states.append((clusters, known, tuple(complete)))
    journal.close()
    return states


def told(recorded: Recorded) -> State:
    return recorded.clusters, dict(recorded.tables), recorded.complete


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    states = fill(tmp_path / "j", 1, 40)
    recorded = read_journal(tmp_path / "j")
    assert recorded is not None
    assert recorded.header == HEADER
    assert told(recorded) == states[-1]
    assert recorded.end == (tmp_path / "j").stat().st_size


@QUICK
@given(seed=st.integers(0, 99), data=st.data())
def test_a_damaged_journal_tells_a_beginning_of_what_was_recorded_or_nothing(
        tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    states = fill(path, seed)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(damaged)))
    path.write_bytes(damaged[:cut] + data.draw(st.binary(max_size=40)))
    recorded = read_journal(path)
    assert recorded is None or told(recorded) in states


def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    states = fill(path, 7, 2)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:]):
            path.write_bytes(damaged)
            recorded = read_journal(path)
            assert recorded is None or told(recorded) in states[:-1]


def test_a_record_counts_at_its_place_only(tmp_path: Path) -> None:
    path = tmp_path / "j"
    ends = []
    journal = Journal.begin(path, HEADER)
    for number in range(3):
        ends.append(path.stat().st_size)
        journal.append(10, {}, [Extent(number * CLUSTER, CLUSTER)])
    journal.close()
    whole = path.read_bytes()
    second = whole[ends[1]:ends[2]]
    for forged in (whole[:ends[0]] + second, whole + second, whole[:ends[1]] + whole[ends[2]:]):
        path.write_bytes(forged)
        recorded = read_journal(path)
        assert recorded is not None
        assert recorded.complete == tuple(merge(Extent(number * CLUSTER, CLUSTER) for number in range(
            {ends[0]: 0, ends[1]: 1, len(whole): 3}[recorded.end])))


def test_a_journal_is_gone_on_with_behind_its_last_good_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    states = fill(path, 3)
    with path.open("ab") as file:
        file.write(b"\0\0\0\x20 half a record")
    recorded = read_journal(path)
    assert recorded is not None
    journal = Journal.resume(path, recorded)
    journal.append(recorded.clusters + 5, {}, [Extent(0, SIZE)])
    journal.close()
    again = read_journal(path)
    assert again is not None
    assert told(again) == (recorded.clusters + 5, states[-1][1], (Extent(0, SIZE),))


@pytest.mark.parametrize(("clusters", "tables", "complete"), [
    (1, {}, []), (20, {0: 20 * CLUSTER}, []), (20, {0: 11 * CLUSTER + 512}, []), (20, {41: 11 * CLUSTER}, []),
    (20, {0: CLUSTER}, []), (20, {7: 12 * CLUSTER}, []), (20, {}, [Extent(SIZE - 512, 1024)]),
    (20, {}, [Extent(0, 0)])])
def test_a_record_that_cannot_be_true_is_the_end(tmp_path: Path, clusters: int, tables: dict[int, int],
                                                 complete: list[Extent]) -> None:
    path = tmp_path / "j"
    journal = Journal.begin(path, HEADER)
    journal.append(11, {7: 10 * CLUSTER}, [])
    journal.append(clusters, tables, complete)
    journal.append(30, {}, [Extent(0, CLUSTER)])
    journal.close()
    recorded = read_journal(path)
    assert recorded is not None
    assert told(recorded) == (11, {7: 10 * CLUSTER}, ())


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b"\xff", b'{"format":2,"point":"p1","size":512,"backing":"","mark":""}',
    b'{"format":1,"point":"../p1","size":512,"backing":"","mark":""}',
    b'{"format":1,"point":"p1","size":513,"backing":"","mark":""}',
    b'{"format":1,"point":"p1","size":512,"backing":"../x","mark":""}',
    b'{"format":1,"point":"p1","size":512,"backing":"","mark":"","more":1}', b"[" * 100_000])
def test_a_header_that_cannot_be_is_no_journal(tmp_path: Path, body: bytes) -> None:
    record = len(body).to_bytes(4, "big") + body
    (tmp_path / "j").write_bytes(record + xxhash.xxh3_64_intdigest(record).to_bytes(8, "big"))
    assert read_journal(tmp_path / "j") is None
    assert read_journal(tmp_path / "none") is None
