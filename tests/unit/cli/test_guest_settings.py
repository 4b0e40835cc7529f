"""What the commands for exclusions, guest processing and credentials take and say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.cli.command_line import CommandLine

CREATE = ("job", "create", "nightly", "--source", "prod", "--target", "dr", "--datastore", "vault", "--vm", "web",
          "--vm", "win:1")  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    line = CommandLine(tmp_path / "home")
    for name in ("prod", "dr"):
        line.ok("host", "add", name, f"qemu+ssh://root@{name}/system")
    line.ok("datastore", "add", "vault", "--host", "dr", "--path", "/vault")
    return line


def test_masks_are_of_one_vm_or_of_all(cli: CommandLine) -> None:
    made = cli.json(*CREATE, "--exclude", "web:/var/cache/**", "--exclude", "/tmp/**", "--exclude",
                    "win:1:C:\\Temp\\*", "--swap", "keep", "--free-blocks", "exclude")  # fmt: skip
    assert made["masks"] == [{"vm": "web", "mask": "/var/cache/**"}, {"vm": "", "mask": "/tmp/**"},
                             {"vm": "win:1", "mask": "C:\\Temp\\*"}]  # fmt: skip
    assert (made["exclude_swap"], made["exclude_free"]) == (False, True)
    changed = cli.json("job", "set", "nightly", "--exclude", "D:\\x\\**", "--swap", "exclude")
    assert changed["masks"] == [{"vm": "", "mask": "D:\\x\\**"}]
    assert (changed["exclude_swap"], changed["exclude_free"]) == (True, True)
    assert cli.json("job", "set", "nightly", "--no-excludes", "--free-blocks", "keep")["masks"] == []


@pytest.mark.parametrize("mask", ["db:/x", "x/y", "web:", "web:x", "/**", "web:/a//b"])
def test_a_mask_that_names_nothing_is_refused(cli: CommandLine, mask: str) -> None:
    assert re.search("mask|names no file", cli.refused(*CREATE, "--exclude", mask))


def test_guests_get_settings_for_all_and_for_one(cli: CommandLine, tmp_path: Path) -> None:
    cli.ok(*CREATE)
    key = tmp_path / "key"
    key.write_text("PRIVATE")
    assert cli.json("credential", "add", "linux", "--key", str(key)) == {
        "name": "linux", "user": "root", "kind": "key"}  # fmt: skip
    assert "linux" in cli.ok("credential", "list").out
    script = str(tmp_path / "before.sh")
    cli.ok("job", "guest", "nightly", "--credential", "linux", "--policy", "require", "--no-applications")
    made = cli.json("job", "guest", "nightly", "--vm", "web", "--transport", "ssh", "--transport", "qga", "--address",
                    "web.lan", "--pre-freeze", script, "--script-timeout", "5")  # fmt: skip
    assert made["guests"] == [
        {"vm": "", "policy": "require", "transports": [], "address": "", "credential": "linux", "pre_freeze": [],
         "post_thaw": [], "script_timeout_s": 0, "applications": False},
        {"vm": "web", "policy": None, "transports": ["ssh", "qga"], "address": "web.lan", "credential": "",
         "pre_freeze": [script], "post_thaw": [], "script_timeout_s": 5, "applications": None},
    ]  # fmt: skip
    assert "uses it" in cli.refused("credential", "remove", "linux")
    assert len(cli.json("job", "guest", "nightly", "--vm", "web", "--reset")["guests"]) == 1
    assert cli.json("job", "guest", "nightly", "--reset")["guests"] == []
    assert "nothing to change" in cli.refused("job", "guest", "nightly")
    cli.ok("credential", "remove", "linux")


def test_a_key_that_cannot_be_read_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    assert "No such file" in cli.refused("credential", "add", "x", "--key", str(tmp_path / "none"))
    assert "exclude each other" in cli.refused("credential", "add", "x", "--key", str(tmp_path), "--password-stdin")
