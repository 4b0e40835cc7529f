"""``job run`` and ``session show``: the report that scripts read, and what people see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.command_line import DISK, CommandLine
from understudy.cli.progress import RateMeter, SessionProgress, plain_events
from understudy.cli.summary import reduction
from understudy.model.session import (
    SessionReport,
    SessionState,
    Step,
    StepReport,
    StepState,
    TaskReport,
)
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
            "bottleneck": "network",
        }],
    }  # fmt: skip
    document = cli.json("job", "run", "nightly")
    assert cli.json("session", "show", str(document["id"])) == document
    assert without_times(document) == {
        "id": 1, "job": "nightly", "state": "success", "tasks": [{"vm": "web", **task}, {"vm": "db", **task}],
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
                           "s", "network"]  # fmt: skip
    row = next(line for line in text.splitlines() if "97 ms" in line)
    assert row.split() == ["web", "warning", "p1", "crash", "97", "ms"]


def test_people_see_bars_on_a_terminal(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = cli("job", "run", "nightly", terminal=True).out
    assert "\x1b[" in text
    assert "1.0 GiB / 10.0 GiB" in text
    assert "Session 1 of job nightly: success" in text


def test_full_rate_is_shown_after_the_first_sample_and_fades() -> None:
    meter = RateMeter()
    assert meter.sample(0.0, 0) == 0
    assert meter.sample(1.0, 100) == 100
    assert meter.sample(1.5, 100) == 100, "the journal was not written since: nothing is known"
    assert meter.sample(2.0, 300) == pytest.approx(110)
    assert meter.sample(3.0, 50) == 0, "a disk that begins again"


def report_of(**task: Any) -> SessionReport:
    return SessionReport(1, "j", SessionState.RUNNING, "t", None, (TaskReport(vm="web", **task),))


def test_progress_lines_tell_rate_and_remaining_time() -> None:
    progress = SessionProgress()
    steps = (StepReport(Step.READ, StepState.RUNNING, 1.0), StepReport(Step.SEND, StepState.RUNNING, 1.0))
    begin = report_of(state=SessionState.RUNNING, steps=steps, disks=(replace(DISK, processed_bytes=0),))
    progress.lines(begin, 0.0)
    later = report_of(state=SessionState.RUNNING, steps=steps, disks=(replace(DISK, processed_bytes=GIB),))
    (line,) = progress.lines(later, 10.0)
    assert (line.vm, line.disk, line.doing, line.fraction) == ("web", "vda", "read, send", 0.1)
    assert (line.amount, line.rate, line.remaining) == ("1.0 GiB / 10.0 GiB", "102 MiB/s", "1 min 30 s")
    done = report_of(state=SessionState.SUCCESS, steps=steps, disks=(DISK,))
    (line,) = progress.lines(done, 11.0)
    assert (line.doing, line.fraction, line.rate, line.remaining) == ("success", 1.0, "", "")


def test_progress_of_a_vm_without_known_disks_and_of_an_empty_disk() -> None:
    (line,) = SessionProgress().lines(report_of(state=SessionState.QUEUED), 0.0)
    assert (line.disk, line.doing, line.fraction) == ("", "queued", 0.0)
    (line,) = SessionProgress().lines(report_of(state=SessionState.RUNNING, disks=(replace(DISK, size=0),)), 0.0)
    assert line.fraction == 1.0


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
