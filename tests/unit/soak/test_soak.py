"""The pure parts of the soak: what is drawn, and what is counted as wrong."""

from __future__ import annotations

import random
from pathlib import Path

from tests.soak.drawing import DISK_PARTS, Before, Fault, Writing, draw
from tests.soak.faults import delete_digests, fault_points, flip_digest
from tests.soak.tally import Tally, differences

POINTS = ["read.before", "retire.committed"]


def test_a_seed_tells_the_whole_story() -> None:
    stories = []
    for _ in range(2):
        dice = random.Random(5)
        stories.append([draw(dice, 3, POINTS) for _ in range(50)])
    assert stories[0] == stories[1]
    other = random.Random(6)
    assert stories[0] != [draw(other, 3, POINTS) for _ in range(50)]


def test_everything_is_drawn_sooner_or_later_and_writes_stay_on_the_disk() -> None:
    dice = random.Random(1)
    rounds = [draw(dice, 3, POINTS) for _ in range(2000)]
    assert {item.job for item in rounds} == {0, 1, 2}
    assert {item.fault for item in rounds} == set(Fault)
    assert {item.before for item in rounds} == set(Before)
    assert {item.point for item in rounds} == {"", *POINTS}
    assert all(bool(item.point) == (item.fault in (Fault.KILL_POINT, Fault.ERROR_POINT)) for item in rounds)
    writes = [write for item in rounds for write in (*item.writes, *item.meanwhile)]
    assert {write.how for write in writes} == set(Writing)
    assert all(write.start >= 0 and write.start + write.count <= DISK_PARTS for write in writes)
    assert len({write.script for write in writes}) > 1000


def test_fault_points_are_those_of_the_source_and_of_every_step() -> None:
    points = fault_points()
    assert {"read.before", "read.middle", "commit.after", "retire.rebased", "publish.renamed"} <= set(points)


def test_digest_files_are_flipped_by_one_bit_or_deleted_by_half(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}" for number in range(8)]
    for path in files:
        path.write_bytes(bytes(100))
    assert flip_digest(files, 12345) == files[1:2]
    assert sum(byte.bit_count() for path in files for byte in path.read_bytes()) == 1
    assert delete_digests(files, 0b10110) == [files[1], files[2], files[4]]
    assert [path.exists() for path in files[:5]] == [True, False, False, True, False]
    assert not delete_digests(files, 0)
    assert not flip_digest([], 1)


def test_a_point_that_is_not_its_truth_is_a_mismatch_with_its_places() -> None:
    tally = Tally()
    tally.truths[("web", 7)] = {"vda": [b"a", b"b", b""], "vdb": [b"c"]}
    tally.point("web", {"id": "p", "session": 7}, {"vda": [b"a", b"b", b""], "vdb": [b"c"]})
    assert tally.good
    tally.point("web", {"id": "p", "session": 7}, {"vda": [b"a", b"x", b"y"], "vdb": [b"c"]})
    assert (tally.verified, tally.mismatches, tally.good) == (2, 1, False)
    assert tally.problems == ["web: point p of session 7: vda: MiB 1, 2"]
    assert tally.lines()[-2:] == ["mismatches: 1", "PROBLEM: web: point p of session 7: vda: MiB 1, 2"]


def test_a_point_of_which_nobody_knows_the_truth_is_a_mismatch_too() -> None:
    tally = Tally()
    tally.point("web", {"id": "p", "session": 7}, {"vda": [b"a"]})
    assert (tally.mismatches, tally.good) == (1, False)


def test_other_disks_and_other_sizes_are_differences() -> None:
    assert differences({"vda": [b"a"]}, {"vdb": [b"a"]}) == ["disks vdb instead of vda"]
    assert differences({"vda": [b"a"]}, {"vda": [b"a", b""]}) == ["vda: 2 MiB instead of 1"]


def test_truths_of_dropped_points_go_and_that_of_a_session_under_way_stays() -> None:
    tally = Tally()
    for session in (1, 2, 3, 9):
        tally.truths[("web", session)] = {}
    tally.truths[("other", 1)] = {}
    tally.forget("web", [2], newest=9)
    assert set(tally.truths) == {("web", 2), ("web", 9), ("other", 1)}


def test_sessions_are_counted_by_state_and_disks_by_mode_and_reason() -> None:
    tally = Tally()
    tally.session("success", {"tasks": [{"disks": [{"mode": "incremental", "reason": ""},
                                                   {"mode": "digest_scan", "reason": "forced"}]}]})
    tally.session("killed", None)
    assert tally.lines()[:2] == ["sessions: 2 (success 1, killed 1)",
                                 "disks, by mode and reason: 2 (incremental 1, digest_scan forced 1)"]
