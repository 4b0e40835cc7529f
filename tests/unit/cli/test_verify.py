"""replica verify: which points it proves, what it says of them, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.command_line import CommandLine
from understudy.cli.progress import VerifyLine
from understudy.model.extent import Extent
from understudy.model.health import DiskHealth
from understudy.mover.api import Progress, VerifiedDisk
from understudy.units import GIB, MIB

NOON, LATER = "2026-01-03T12:00:00.000+00:00", "2026-01-04T12:00:00.000+00:00"
BAD = VerifiedDisk("vda", 100, 3, (1, 2, 7), "", (Extent(MIB, 2 * MIB), Extent(7 * MIB, MIB)), ("p1",), NOON)


@pytest.fixture
def full(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home").with_job()


def verified(cli: CommandLine) -> list[tuple[object, ...]]:
    """The verifications that the last command asked for."""
    return [call[1:] for call in cli.calls if call[0] == "verify_point"]


def test_the_newest_point_is_verified_or_the_one_that_is_named(full: CommandLine) -> None:
    assert full.json("replica", "verify", "web_replica") == {
        "replica": "web_replica", "datastore": "vault", "point": "p2", "newest": True, "ok": True, "complete": True,
        "disks": [{"name": "vda", "blocks": 100, "bad_count": 0, "bad_blocks": [], "problem": "", "bad_ranges": [],
                   "affected_points": [], "verified_at": None, "digests_recomputed_at": None}],
    }  # fmt: skip
    full.ok("replica", "verify", "web_replica", "--point", "p1", "--rate", "50MiB", "--restart")
    assert verified(full) == [("web_replica", "p1", 50 * MIB, True)]
    assert full.refused("replica", "verify", "web_replica", "--point", "p9").startswith("restore point 'p9' of ")


def test_damage_is_told_with_its_places_and_the_points_affected(full: CommandLine) -> None:
    full.settings["verified"] = (
        BAD, VerifiedDisk("vdb", 9, 0, (), ""), VerifiedDisk("vdc", 9, 0, (), "digest file is missing"),
    )  # fmt: skip
    line = full.refused("replica", "verify", "web_replica", status=1)
    assert line == (
        "verify restore point 'p2' of replica 'web_replica': disk vda: 3 of 100 blocks do not match (bytes 1048576 to "
        "3145727, bytes 7340032 to 8388607); points affected too: p1; disk vdc: digest file is missing; run its job: "
        "the next session repairs the newest point from the source"
    )
    assert full.refused("replica", "verify", "web_replica", "--point", "p1", status=1).endswith(
        "; use another restore point"
    )
    document = full("--json", "replica", "verify", "web_replica").out
    assert document.count('"ok": false') == 1
    assert '"affected_points": [\n        "p1"\n      ]' in document


def test_many_places_are_cut_short(full: CommandLine) -> None:
    places = tuple(Extent(number * 2 * MIB, MIB) for number in range(9))
    full.settings["verified"] = (VerifiedDisk("vda", 100, 9, (), "", places),)
    assert "bytes 4194304 to 5242879, and 6 more)" in full.refused("replica", "verify", "web_replica", status=1)


def test_recomputed_digests_are_told_but_are_no_failure(full: CommandLine) -> None:
    full.settings["verified"] = (VerifiedDisk("vda", 100, 0, (), "", verified_at=LATER, digests_recomputed_at=NOON),)
    assert f"recomputed from the replica at {NOON} and tell only what changed since" in full.ok(
        "replica", "verify", "web_replica").out  # fmt: skip


def test_all_points_are_verified_although_one_cannot_be(full: CommandLine) -> None:
    document = full.json("replica", "verify", "web_replica", "--all")
    assert [point["point"] for point in document["points"]] == ["p1", "p2"]
    assert (document["ok"], document["complete"], document["problems"]) == (True, True, [])
    full.settings["unverifiable"] = ("p1",)
    line = full.refused("replica", "verify", "web_replica", "--all", status=1)
    assert line == "verify restore points: verify p1: it is being verified already; see 'understudy replica points'"
    assert len(verified(full)) == 2
    full.settings |= {"verified": (BAD,), "unverifiable": ()}
    line = full.refused("replica", "verify", "web_replica", "--all", status=1)
    assert "web_replica p1: disk vda: 3 of 100" in line
    assert "web_replica p2: disk vda: 3 of 100" in line


def test_what_is_due_is_verified_at_the_rate_of_its_job(full: CommandLine) -> None:
    assert "Nothing to verify" in full.ok("replica", "verify", "--due").out
    full.settings["due"] = ("p2", "p1")
    assert full.json("replica", "verify", "--due")["ok"] is True
    assert verified(full) == [("web_replica", "p2", 7, False), ("web_replica", "p1", 7, False)]
    full.ok("replica", "verify", "--due", "--rate", "unlimited")
    assert verified(full)[0] == ("web_replica", "p2", 0, False)
    full.settings["problems"] = ("replica 'ds/x': the proxy is away",)
    assert "the proxy is away" in full.refused("replica", "verify", "--due", status=1)
    assert len(verified(full)) == 2


def test_a_time_that_is_over_is_no_failure_and_leaves_the_rest_for_the_next_one(full: CommandLine) -> None:
    full.settings["due"] = ("p2", "p1")
    document = full.json("replica", "verify", "--due", "--for", "0s")
    assert document == {"ok": True, "complete": False, "points": [], "problems": []}
    assert "The time is over" in full.ok("replica", "verify", "--due", "--for", "0s").out
    assert full.json("replica", "verify", "--due", "--for", "2h")["complete"] is False
    assert "not yet to its end" in full.ok("replica", "verify", "web_replica", "--for", "1h").out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "missing argument 'REPLICA'"),
        (("--due", "web_replica"), "--due takes no REPLICA"),
        (("--due", "--all"), "--due takes no REPLICA"),
        (("--due", "--point", "p1"), "--due takes no REPLICA"),
        (("web_replica", "--all", "--point", "p1"), "exclude each other"),
        (("web_replica", "--for", "soon"), "not a duration: 'soon'"),
        (("web_replica", "--rate", "slow"), "not a rate: 'slow'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(full: CommandLine, arguments: tuple[str, ...], why: str) -> None:
    assert why in full.refused("replica", "verify", *arguments)


def test_points_and_replica_show_what_is_known(full: CommandLine) -> None:
    full.settings["health"] = (
        DiskHealth("p1", "vda", verified_at=NOON), DiskHealth("p2", "vda", bad=BAD.bad, bad_blocks=3, problem="odd"),
    )  # fmt: skip
    first, second = full.json("replica", "points", "web_replica")
    assert (first["verified_at"], first["bad_blocks"]) == (NOON, 0)
    assert (first["disks"][0]["verified_at"], second["disks"][0]["bad_blocks"]) == (NOON, 3)
    assert (second["verified_at"], second["bad_blocks"]) == (None, 3)
    shown = full.json("replica", "show", "web_replica")
    assert shown["verified_at"] == {"p1": NOON, "p2": None}
    assert shown["bad_blocks"] == {"p2": {"vda": 3}}
    assert shown["health_problems"] == {"p2": ["disk vda: odd"]}
    text = full.ok("replica", "points", "web_replica").out
    assert NOON in text
    assert "never; 3 bad blocks; disk vda: odd" in text


def test_the_terminal_shows_percentage_rate_and_time_left(full: CommandLine) -> None:
    assert "web_replica p2: 50 %, 50 B of 100 B" in full("replica", "verify", "web_replica", terminal=True).out
    line = VerifyLine()
    begun = Progress(total=100 * GIB, processed=50 * GIB, saved=50 * GIB)
    assert line.text(begun, 10.0) == "50 %, 50.0 GiB of 100 GiB"
    going = Progress(total=100 * GIB, processed=51 * GIB, saved=50 * GIB)
    assert line.text(going, 20.0) == "51 %, 51.0 GiB of 100 GiB, 102 MiB/s, 8 min 10 s left"
