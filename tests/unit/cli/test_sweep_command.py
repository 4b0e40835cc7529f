"""``understudy sweep``: what is shown of leftovers, and when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.command_line import CommandLine
from understudy.controller.leftovers import Action, Kind, Leftover, Swept

CHECKPOINT = Leftover(Kind.CHECKPOINT, "prod", "web [red]1", "understudy-a-1", 7, Action.REMOVE, "no point needs it",
                      "job-1", ("virsh checkpoint-delete web understudy-a-1",))  # fmt: skip
UNKNOWN = replace(CHECKPOINT, name="understudy-f-1", action=Action.NOT_OURS, why="job unknown", job="",
                  commands=("virsh checkpoint-delete web understudy-f-1",))  # fmt: skip


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home")


def test_leftovers_are_one_array(command: CommandLine) -> None:
    command.settings["swept"] = (Swept(CHECKPOINT), Swept(UNKNOWN))
    removed, unknown = command.json("sweep")
    assert removed == {
        "kind": "checkpoint", "place": "prod", "owner": "web [red]1", "name": "understudy-a-1", "session": 7,
        "action": "remove", "why": "no point needs it", "done": True, "problem": "",
        "commands": ["virsh checkpoint-delete web understudy-a-1"],
    }  # fmt: skip
    assert (unknown["action"], unknown["done"]) == ("not_ours", False)
    assert command.calls[0] == ("sweep", (), False)
    (listed, _) = command.json("sweep", "--dry-run", "--host", "prod", "--host", "dr")
    assert listed["done"] is False
    assert command.calls[0] == ("sweep", ("prod", "dr"), True)


def test_people_see_what_was_done_and_the_commands_for_what_is_not_ours(command: CommandLine) -> None:
    command.settings["swept"] = (Swept(CHECKPOINT), Swept(UNKNOWN))
    text = command.ok("sweep").out
    assert "remove: done" in text
    assert "web [red]1" in text
    assert "  virsh checkpoint-delete web understudy-f-1\n" in text
    assert "  virsh checkpoint-delete web understudy-a-1\n" not in text
    command.settings["swept"] = ()
    assert command.ok("sweep").out == "Nothing was left.\n"
    assert command.json("sweep") == []


def test_what_could_not_be_removed_fails_with_its_commands(command: CommandLine) -> None:
    command.settings["swept"] = (Swept(UNKNOWN), Swept(CHECKPOINT, "the daemon refused"))
    assert command.refused("sweep", status=1) == (
        "sweep: checkpoint understudy-a-1 of web [red]1: the daemon refused; by hand: "
        "`virsh checkpoint-delete web understudy-a-1`"
    )
    result = command("--json", "sweep")
    assert (result.status, '"problem": "the daemon refused"' in result.out) == (1, True)
