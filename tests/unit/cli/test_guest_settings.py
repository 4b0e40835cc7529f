"""What the commands for exclusions, guest processing and credentials take and say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.command_line import GUEST, CommandLine

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
    cli.ok("job", "guest", "nightly", "--credential", "linux", "--policy", "require", "--no-applications",
           "--freeze-deadline", "20", "--applications-share", "30")  # fmt: skip
    made = cli.json("job", "guest", "nightly", "--vm", "web", "--transport", "ssh", "--transport", "qga", "--address",
                    "web.lan", "--pre-freeze", script, "--script-timeout", "5")  # fmt: skip
    assert made["guests"] == [
        {"vm": "", "policy": "require", "transports": [], "address": "", "credential": "linux", "pre_freeze": [],
         "post_thaw": [], "script_timeout_s": 0, "applications": False, "freeze_deadline_s": 20,
         "applications_percent": 30},
        {"vm": "web", "policy": None, "transports": ["ssh", "qga"], "address": "web.lan", "credential": "",
         "pre_freeze": [script], "post_thaw": [], "script_timeout_s": 5, "applications": None,
         "freeze_deadline_s": 0, "applications_percent": 0},
    ]  # fmt: skip
    assert "3<=x<=60" in cli.refused("job", "guest", "nightly", "--freeze-deadline", "61")
    assert "10<=x<=60" in cli.refused("job", "guest", "nightly", "--applications-share", "61")
    assert "uses it" in cli.refused("credential", "remove", "linux")
    assert len(cli.json("job", "guest", "nightly", "--vm", "web", "--reset")["guests"]) == 1
    assert cli.json("job", "guest", "nightly", "--reset")["guests"] == []
    assert "nothing to change" in cli.refused("job", "guest", "nightly")
    cli.ok("credential", "remove", "linux")


def test_a_key_that_cannot_be_read_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    assert "No such file" in cli.refused("credential", "add", "x", "--key", str(tmp_path / "none"))
    assert "exclude each other" in cli.refused("credential", "add", "x", "--key", str(tmp_path), "--password-stdin")


def test_a_check_tells_what_is_in_a_guest_and_fails_where_nothing_works(cli: CommandLine) -> None:
    (document,) = cli.json("job", "check-guest", "nightly", "--vm", "web", "--accept-host-key")
    assert document == {
        "vm": "web", "transport": "qga", "problems": {"ssh": "no route"}, "component": "runtime", "version": "1",
        "applications": [{"kind": "postgresql", "name": "15/main", "detail": "port 5432"}], "can_freeze": True,
        "accepted_host_key": "SHA256:abc",
    }  # fmt: skip
    assert cli.ok("job", "check-guest", "nightly").out.splitlines() == [
        "web: by qga, runtime 1; file systems can be frozen", "web: postgresql 15/main (port 5432)",
        "web: ssh: no route",
    ]  # fmt: skip
    cli.settings["guest"] = replace(GUEST, transport=None, can_freeze=False)
    assert "web: neither a program nor a freeze" in cli.refused("job", "check-guest", "nightly", status=1)


def test_the_program_is_installed_and_removed(cli: CommandLine) -> None:
    assert cli.json("guest", "install-agent", "nightly", "web") == {"vm": "web", "transport": "qga", "installed": True}
    assert "removed from the guest of web (by qga)" in cli.ok("guest", "remove-agent", "nightly", "web").out
