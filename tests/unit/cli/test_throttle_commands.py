"""What the throttle commands take and say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.command_line import CommandLine
from understudy.units import MIB


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    line = CommandLine(tmp_path / "home")
    line.ok("proxy", "add", "far")
    return line


def test_a_throttle_is_added_listed_changed_and_removed(cli: CommandLine) -> None:
    assert cli.json("throttle", "list") == []
    assert "No throttles" in cli.ok("throttle", "list").out
    document = {
        "name": "night", "from": "local", "to": "far", "rate": 12 * MIB, "rate_now": 5_000_000,
        "windows": [{"days": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], "start": "00:00", "end": "24:00",
                     "rate": 5_000_000},
                    {"days": ["Sat", "Sun"], "start": "22:00", "end": "06:00", "rate": None}],
    }  # fmt: skip
    arguments = ("night", "--from", "local", "--to", "far", "--rate", "12M", "--window", "daily 00:00-24:00 40Mbit",
                 "--window", "Sat-Sun 22:00-06:00 unlimited")  # fmt: skip
    assert cli.json("throttle", "add", *arguments) == document
    assert cli.json("throttle", "list") == [document]
    text = cli.ok("throttle", "list").out
    assert "12.0 MiB/s (100.7 Mbit/s)" in text
    assert "daily 00:00-24:00 5000000, Sat-Sun 22:00-06:00 unlimited" in text
    changed = cli.json("throttle", "set", "night", "--no-windows")
    assert changed == {**document, "windows": [], "rate_now": 12 * MIB}
    changed = cli.json("throttle", "set", "night", "--rate", "unlimited", "--window", "daily 00:00-24:00 1M")
    assert (changed["rate"], changed["rate_now"], len(changed["windows"])) == (None, MIB, 1)
    assert cli.json("throttle", "list") == [changed]
    assert cli.json("throttle", "remove", "night") == {"name": "night", "removed": True}
    assert cli.json("throttle", "list") == []


def test_people_are_told_what_holds_now(cli: CommandLine) -> None:
    assert cli.ok("throttle", "add", "all", "--rate", "1M").out == (
        "Throttle all added; now 1.0 MiB/s (8.4 Mbit/s).\n"
    )
    assert cli.ok("throttle", "set", "all", "--rate", "2M").out == "Throttle all: now 2.0 MiB/s (16.8 Mbit/s).\n"
    assert "all" in cli.ok("throttle", "list").out
    assert cli.ok("throttle", "remove", "all").out == "Throttle all removed.\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("add", "n"), "add throttle 'n': it would not limit anything; give a rate, or a window with a rate"),
        (("add", "n", "--rate", "fast"), "add throttle 'n': not a rate: 'fast'; see 'understudy throttle add --help'"),
        (("add", "n", "--window", "Day 1:00-2:00 1M"), "add throttle 'n': not a day: 'Day'; use Mon, Tue, Wed, Thu, "
         "Fri, Sat, Sun or daily; see 'understudy throttle add --help'"),
        (("add", "n", "--rate", "1M", "--to", "x"), "proxy 'x': no such proxy; see 'understudy proxy list'"),
        (("add", "all", "--rate", "1M"), "add throttle 'all': the name is taken; choose another name, or remove the "
         "old one first"),
        (("set", "all"), "set throttle 'all': nothing to change was named; give --rate, --window or --no-windows"),
        (("set", "all", "--no-windows", "--window", "x"), "set throttle 'all': --window and --no-windows exclude each "
         "other; give one of them"),
        (("set", "n", "--rate", "1M"), "throttle 'n': no such throttle; see 'understudy throttle list'"),
        (("remove", "n"), "throttle 'n': no such throttle; see 'understudy throttle list'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    cli: CommandLine, arguments: tuple[str, ...], line: str
) -> None:
    before = cli.json("throttle", "add", "all", "--rate", "1M")
    assert cli.refused("throttle", *arguments) == line
    assert cli.json("throttle", "list") == [before]
