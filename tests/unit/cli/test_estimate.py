"""``job estimate``: the document that scripts read, and what people see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.command_line import CommandLine
from tests.unit.cli.test_commands import left_held
from understudy.model.session import SessionState
from understudy.units import GIB, MIB


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home").with_job()


VDA = {"size": 10 * GIB, "used": 6 * GIB, "swap": 2 * GIB, "mask": GIB, "free": 0, "zero": GIB, "changed": 8 * MIB,
       "read": 12 * MIB, "send": 5 * MIB}  # fmt: skip
VDB = {"size": GIB, "used": GIB, "swap": 0, "mask": 0, "free": 0, "zero": 0, "changed": None, "read": GIB, "send": GIB}
BOTH = {"size": 11 * GIB, "used": 7 * GIB, "swap": 2 * GIB, "mask": GIB, "free": 0, "zero": GIB, "changed": None,
        "read": GIB + 12 * MIB, "send": GIB + 5 * MIB}  # fmt: skip


def test_the_document_has_exactly_the_keys_of_the_contract(cli: CommandLine) -> None:
    web = {
        "vm": "web", "state": "success", "error": None, "warnings": [], "total": BOTH, "disks": [
            {"name": "vda", "mode": "incremental", "reason": "", **VDA,
             "notes": ["disk vda, partition 3: luks is not read"]},
            {"name": "vdb", "mode": "digest_scan", "reason": "tracking_unsupported", **VDB, "notes": []},
        ],
    }  # fmt: skip
    document = cli.json("job", "estimate", "nightly", "--vm", "web")
    assert document == {"session": 1, "job": "nightly", "state": "success", "vms": [web], "total": BOTH}
    everything = cli.json("job", "estimate", "nightly")
    assert [item["vm"] for item in everything["vms"]] == ["web", "db"]
    assert everything["total"]["send"] == 2 * (GIB + 5 * MIB)
    shown = cli.json("session", "show", "2")
    assert (shown["kind"], shown["tasks"][0]["estimate"]) == ("estimate", web["disks"])
    assert [item["kind"] for item in cli.json("session", "list")] == ["estimate", "estimate"]


def test_people_see_a_row_for_each_disk_and_sums_of_what_is_more_than_one(cli: CommandLine) -> None:
    cli.settings["outcome"] = SessionState.WARNING
    lines = cli.ok("job", "estimate", "nightly").out.splitlines()
    rows = [" ".join(line.split()) for line in lines]
    assert "web vda incremental - 10.0 GiB 6.0 GiB 2.0 GiB 1.0 GiB 0 B 1.0 GiB 8.0 MiB 12.0 MiB 5.0 MiB" in rows
    assert "db vdb digest_scan tracking_unsupported 1.0 GiB 1.0 GiB 0 B 0 B 0 B 0 B - 1.0 GiB 1.0 GiB" in rows
    assert [row.split()[:2] for row in rows if " 11.0 GiB " in row] == [["web", "all"], ["db", "all"]]
    assert [row for row in rows if row.startswith("total 22.0 GiB 14.0 GiB")]
    assert [row for row in rows if row.startswith("To send: at most, before compression.")]
    assert "web: disk vda, partition 3: luks is not read" in lines
    assert "warning: db: no guest agent" in lines
    assert "web: disk vda, partition 3: luks is not read" in cli.ok("session", "show", "1").out


@pytest.mark.parametrize(("outcome", "status"), [(SessionState.FAILED, 1), (SessionState.CANCELLED, 130)])
def test_an_estimate_that_failed_is_told_as_such(cli: CommandLine, outcome: SessionState, status: int) -> None:
    cli.settings["outcome"] = outcome
    result = cli("--json", "job", "estimate", "nightly", "--vm", "db")
    assert (result.status, json.loads(result.out)["state"]) == (status, outcome.value)
    assert result.err.startswith("error: estimate job 'nightly': ")


def test_a_vm_that_the_job_has_not_and_a_job_that_runs_are_refused(cli: CommandLine) -> None:
    assert cli.refused("job", "estimate", "nightly", "--vm", "mars").startswith("estimate job 'nightly': it has no VM")
    cli.ok("job", "run", "nightly", "--no-wait")
    assert "its session 1 has not ended" in cli.refused("job", "estimate", "nightly")


def test_a_session_that_was_interrupted_comes_first_and_one_that_is_lost_ends(cli: CommandLine) -> None:
    session = left_held(cli)
    cli.settings["held"] = True
    assert cli.refused("job", "estimate", "nightly") == (
        f"estimate job 'nightly': its session {session} was interrupted and can be gone on with; run 'understudy job "
        "run nightly' first"
    )
    cli.settings["held"] = False
    assert cli.json("job", "estimate", "nightly")["session"] == session + 1
