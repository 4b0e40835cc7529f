"""``host check --live-test``: who confirms, what is written, and what is not."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.command_line import LIVE, CommandLine
from understudy.cli.live_test import hashed
from understudy.errors import MoverError
from understudy.model.live_test import LiveStep, LiveTestWish


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def command(report: Path, *more: str) -> tuple[str, ...]:
    return ("host", "check", "vc", "--live-test", "web", "--report", str(report), *more)


def test_the_report_is_written_for_its_reader_alone(cli: CommandLine, report: Path) -> None:
    answer = cli.json(*command(report, "--yes", "--proxy", "far"))
    assert cli.calls[0] == ("live_test", "vc", LiveTestWish("web", "far"))
    assert (answer["host"], answer["ok"], answer.pop("report")) == ("vc", True, str(report))
    assert answer["steps"] == [
        {"name": "first snapshot", "seconds": 1.5, "error": "",
         "facts": {"note 1": "disk [fast] web/web.vmdk", "quiesced": True, "size": 9}},
        {"name": "second snapshot", "seconds": 0.25, "facts": {}, "error": ""},
    ]  # fmt: skip
    assert list(answer) == ["host", "version", "made_at", "ok", "steps"]
    assert json.loads(report.read_text()) == answer
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_each_step_is_shown_as_it_ends(cli: CommandLine, report: Path) -> None:
    text = cli.ok(*command(report, "--yes")).out
    assert "   1.500 s  first snapshot: note 1 disk [fast] web/web.vmdk, quiesced True, size 9\n" in text
    assert "   0.250 s  second snapshot: done\n" in text
    assert str(report) in text


def test_names_are_hashed_on_demand(cli: CommandLine, report: Path) -> None:
    answer = cli.json(*command(report, "--yes", "--hash-names"))
    text = report.read_text()
    assert "fast" not in text
    assert "web" not in text
    assert answer["steps"][0]["name"] == "first snapshot"
    assert answer["steps"][0]["facts"]["quiesced"] is True


def test_a_name_has_the_same_hash_everywhere_and_another_one_in_another_report() -> None:
    step = {"name": "read web", "seconds": 1.0, "facts": {"disk": "web01 on web"}, "error": "web01: refused"}
    document = {"host": "web01", "ok": False, "steps": [step]}
    found = hashed(document, ("web", "web01", "w"), "salt")
    (shown,) = found["steps"]
    assert shown["error"] == f"{found['host']}: refused"
    one, _, web = shown["facts"]["disk"].partition(" on ")
    assert (one, shown["name"]) == (found["host"], "read web"), "a step has its own words"
    assert web.startswith("name-")
    assert web != one
    assert hashed(document, ("web01",), "other")["host"] != found["host"]
    assert document["host"] == "web01", "the document itself stays"


def test_nobody_who_cannot_be_asked_has_a_vm_touched(cli: CommandLine, report: Path) -> None:
    assert "nobody can be asked here; give --yes" in cli.refused(*command(report))
    assert "nobody can be asked here" in cli.refused("--json", *command(report))
    assert cli.services is None
    assert not report.exists()


def test_on_a_terminal_it_is_asked(cli: CommandLine, report: Path) -> None:
    result = cli(*command(report), terminal=True, typed="n\n")
    assert (result.status, cli.services, report.exists()) == (2, None, False)
    assert "Two snapshots of it will be made and removed" in result.err
    result = cli(*command(report), terminal=True, typed="y\n")
    assert (result.status, report.exists()) == (0, True)


def test_a_file_that_exists_is_not_overwritten_and_nothing_is_done(cli: CommandLine, report: Path) -> None:
    report.write_text("mine")
    assert f"{report} exists; name another file" in cli.refused(*command(report, "--yes"))
    assert (cli.services, report.read_text()) == (None, "mine")


def test_a_failed_step_is_reported_and_fails(cli: CommandLine, report: Path) -> None:
    cli.settings["live"] = replace(LIVE, steps=(LiveStep("host", 1.0), LiveStep("first snapshot", 2.0, {}, "refused")))
    result = cli("--json", *command(report, "--yes"))
    assert (result.status, json.loads(result.out)["ok"]) == (1, False)
    assert result.err == "error: live test of host 'vc': first snapshot: refused\n"
    assert json.loads(report.read_text())["steps"][1]["error"] == "refused"


def test_a_test_that_cannot_begin_writes_nothing(cli: CommandLine, report: Path) -> None:
    cli.settings["error"] = MoverError("disks of host 'vc'", "no proxy can read them")
    assert "no proxy can read them" in cli.refused(*command(report, "--yes"), status=1)
    assert not report.exists()
