"""``job run`` and ``session show``: the report that scripts read, and what people see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.command_line import DISK, CommandLine
from understudy.cli.progress import plain_events, progress_lines
from understudy.cli.summary import reduction, show_session
from understudy.model.session import (
    SessionReport,
    SessionState,
    Step,
    StepReport,
    StepState,
    TaskReport,
)
from understudy.model.transfer import TransportMode
from understudy.units import GIB, KIB, MIB


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home").with_job()


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    assert document.pop("started_at") <= document.pop("ended_at")
    return document


def test_the_report_has_exactly_the_keys_of_the_contract(cli: CommandLine) -> None:
    task = {
        "state": "success", "restore_point": "p1", "consistency": "crash", "frozen_ms": 97.25, "error": None,
        "warnings": [], "steps": [{"name": "read", "state": "success", "seconds": 1.5}],
        "disks": [{
            "name": "vda", "mode": "incremental", "reason": "", "size": 10 * GIB, "read_bytes": 8 * MIB,
            "sent_bytes": 6 * MIB, "wire_bytes": 2 * MIB, "zero_bytes": 512 * KIB, "seconds": 1.5,
            "bottleneck": "network", "transport": "network", "busy": {"source": 0.25, "network": 0.75}, "rate": 0.0,
            "eta_s": None, "processed_bytes": 10 * GIB, "resumed_bytes": 3 * GIB, "reconnects": 2, "waiting": "",
            "checked_blocks": 16, "mismatched_blocks": 0, "excluded": {}, "notes": [],
        }],
        "guest": None, "estimate": [],
    }  # fmt: skip
    document = cli.json("job", "run", "nightly")
    assert cli.json("session", "show", str(document["id"])) == document
    assert without_times(document) == {
        "id": 1, "job": "nightly", "state": "success", "kind": "replicate",
        "tasks": [{"vm": "web", **task}, {"vm": "db", **task}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(SessionState.SUCCESS, 0), (SessionState.WARNING, 0), (SessionState.FAILED, 1), (SessionState.CANCELLED, 130)],
)
def test_the_exit_status_tells_the_outcome(cli: CommandLine, outcome: SessionState, status: int) -> None:
    cli.settings["outcome"] = outcome
    result = cli("--json", "job", "run", "nightly")
    assert result.status == status
    assert result.err.count("\n") == (1 if status else 0)
    report = json.loads(result.out)
    assert [report["state"], *(task["state"] for task in report["tasks"])] == [outcome] * 3, "it is there in any case"
    assert cli("session", "show", "1").status == 0, "showing a failed session is no failure"


def test_a_failed_session_says_how_many_failed(cli: CommandLine) -> None:
    cli.settings["outcome"] = SessionState.FAILED
    assert cli.refused("job", "run", "nightly", status=1) == (
        "run job 'nightly': 2 of 2 VMs failed ('web', 'db'); see 'understudy session show 1'"
    )


def test_a_single_failed_vm_says_why(cli: CommandLine) -> None:
    cli.settings["outcome"] = SessionState.FAILED
    cli.ok("job", "create", "one", "--source", "prod", "--vm", "web", "--target", "dr", "--datastore", "vault")
    assert cli.refused("job", "run", "one", status=1) == (
        "run job 'one': replicate 'web': datastore is full; free some space"
    )


def test_people_see_plain_lines_where_there_is_no_terminal(cli: CommandLine) -> None:
    cli.settings["outcome"] = SessionState.WARNING
    text = cli.ok("job", "run", "nightly").out
    assert text.isprintable() or set(text) - {"\n"} == {char for char in text if char.isprintable()}
    for line in ("web: read: running", "web: read: success (1.5 s)", "db: warning", "warning: web: no guest agent"):
        assert line in text.splitlines()
    row = next(line for line in text.splitlines() if "incremental" in line)
    assert row.split() == ["web", "vda", "incremental", "-", "10.0", "GiB", "8.0", "MiB", "2.0", "MiB", "4.0x", "1.5",
                           "s", "network", "16"]  # fmt: skip
    row = next(line for line in text.splitlines() if "97 ms" in line)
    assert row.split() == ["web", "warning", "p1", "crash", "97", "ms"]


def test_people_see_bars_on_a_terminal(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = cli("job", "run", "nightly", terminal=True).out
    assert "\x1b[" in text
    assert "1.0 GiB / 10.0 GiB" in text
    assert "Session 1 of job nightly: success" in text


def report_of(**task: Any) -> SessionReport:
    return SessionReport(1, "j", SessionState.RUNNING, "t", None, (TaskReport(vm="web", **task),))


READING = (StepReport(Step.READ, StepState.RUNNING, 1.0), StepReport(Step.SEND, StepState.RUNNING, 1.0))
MOVING = replace(DISK, processed_bytes=GIB, rate=102.4 * MIB)


def test_progress_lines_tell_the_rate_and_the_remaining_time_of_the_report() -> None:
    (line,) = progress_lines(report_of(state=SessionState.RUNNING, steps=READING, disks=(MOVING,)))
    assert (line.vm, line.disk, line.doing, line.fraction) == ("web", "vda", "read, send", 0.1)
    assert (line.amount, line.rate, line.remaining) == ("1.0 GiB / 10.0 GiB", "102 MiB/s", "1 min 30 s")
    (line,) = progress_lines(report_of(state=SessionState.SUCCESS, steps=READING, disks=(DISK,)))
    assert (line.doing, line.fraction, line.rate, line.remaining) == ("success", 1.0, "", "")


def test_a_progress_line_says_why_its_disk_waits() -> None:
    waiting = replace(MOVING, rate=0.0, waiting="no free task slot on proxy 'far'")
    (line,) = progress_lines(report_of(state=SessionState.RUNNING, steps=READING, disks=(waiting,)))
    assert (line.doing, line.rate, line.remaining) == ("waiting: no free task slot on proxy 'far'", "", "")


def test_progress_of_a_vm_without_known_disks_and_of_an_empty_disk() -> None:
    (line,) = progress_lines(report_of(state=SessionState.QUEUED))
    assert (line.disk, line.doing, line.fraction) == ("", "queued", 0.0)
    (line,) = progress_lines(report_of(state=SessionState.RUNNING, disks=(replace(DISK, size=0),)))
    assert line.fraction == 1.0


def shown(capsys: pytest.CaptureFixture[str], **task: Any) -> list[str]:
    show_session(report_of(**task))
    return capsys.readouterr().out.splitlines()


def test_a_running_session_is_shown_disk_by_disk(capsys: pytest.CaptureFixture[str]) -> None:
    busy = {"source": 0.61, "source_proxy": 0.004, "network": 0.2, "target_proxy": 0.186}
    near = replace(MOVING, name="vdb", wire_bytes=0, transport=TransportMode.LOCAL, rate=0.0, busy=busy,
                   waiting="proxy far: connection refused, since 12 s")  # fmt: skip
    lines = shown(capsys, state=SessionState.RUNNING, steps=READING, disks=(MOVING, near))
    assert lines[-4:] == [
        "web: read, send",
        "web: disk vda: 1.0 GiB / 10.0 GiB, 102 MiB/s, 1 min 30 s left, 2.0 MiB on the wire, network, network 75 %, "
        "source 25 %",
        "web: disk vdb: 1.0 GiB / 10.0 GiB, local, source 61 %, network 20 %, target proxy 19 %",
        "web: disk vdb waits: proxy far: connection refused, since 12 s",
    ]
    assert not any("incremental" in line for line in lines), "the table is for what has ended"


def test_an_ended_session_tells_what_an_earlier_one_had_brought_and_lost_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = replace(DISK, name="vdb", resumed_bytes=0, reconnects=1)
    lines = shown(capsys, state=SessionState.SUCCESS, disks=(DISK, again, replace(again, name="vdc", reconnects=0)))
    assert lines[-3:] == [
        "web: disk vda: 3.0 GiB were there already from an earlier session",
        "web: disk vda: lost connections were made again 2 times",
        "web: disk vdb: lost connections were made again once",
    ]
    assert any("incremental" in line for line in lines)


def test_an_ended_session_tells_how_many_blocks_were_checked(capsys: pytest.CaptureFixture[str]) -> None:
    disks = tuple(replace(DISK, name=f"vd{letter}", checked_blocks=checked, mismatched_blocks=mismatched)
                  for letter, checked, mismatched in (("a", 0, 0), ("b", 16, 0), ("c", 128, 3)))  # fmt: skip
    lines = shown(capsys, state=SessionState.SUCCESS, disks=disks)
    (titles,) = [line for line in lines if "Bottleneck" in line]
    rows = [line[titles.index("Checked") :].strip() for line in lines if "incremental" in line]
    assert rows == ["-", "16", "128, 3 changed"]


def test_events_are_told_once() -> None:
    running = report_of(state=SessionState.RUNNING, steps=(StepReport(Step.READ, StepState.RUNNING, 1.0),))
    ended = report_of(state=SessionState.FAILED, steps=(StepReport(Step.READ, StepState.FAILED, 2.0),))
    assert plain_events(None, running) == ["web: read: running"]
    assert plain_events(running, running) == []
    assert plain_events(running, ended) == ["web: read: failed (2.0 s)", "web: failed"]
    assert plain_events(ended, ended) == []


def test_reduction_counts_what_was_put_on_the_way() -> None:
    assert reduction(DISK) == "4.0x"
    assert reduction(replace(DISK, wire_bytes=0)) == "1.3x"
    assert reduction(replace(DISK, wire_bytes=0, sent_bytes=0)) == "-"
