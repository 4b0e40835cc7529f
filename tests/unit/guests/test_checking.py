"""What check-guest tells of a guest, and the program that is installed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.guests.local_guest import PROGRAM, LocalGuest, local_program
from understudy.errors import GuestError
from understudy.guests.checking import check_guest, install_agent, remove_agent
from understudy.guests.program import AGENT_PATH
from understudy.guests.transport import Transport
from understudy.model.guest import Component, GuestTransport

KEY, PREFIX = "understudy-j1-00000000-7", "understudy-j1-00000000-"


def refuse() -> Transport:
    raise GuestError("guest agent", "the guest does not allow guest-exec")


def freezing_agent(command: str, arguments: object, timeout_s: float) -> Any:
    names = ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
    return {"supported_commands": [{"name": name, "enabled": True} for name in names]}


def test_it_tells_what_a_session_would_use_and_why_not_the_rest(tmp_path: Path) -> None:
    guest = LocalGuest(tmp_path, kind=GuestTransport.SSH)
    ways = {GuestTransport.QGA: refuse, GuestTransport.SSH: lambda: guest}
    found = check_guest(ways, freezing_agent, KEY, PREFIX, local_program)
    assert (found.transport, found.component, found.version) == (GuestTransport.SSH, Component.RUNTIME, "1")
    assert "does not allow guest-exec" in found.problems[GuestTransport.QGA]
    assert found.applications == (("postgresql", "15/main", "port 5432"),)
    assert found.can_freeze
    assert guest.files == []
    assert guest.log == ["discover", "cleanup"]
    assert guest.closed


def test_a_guest_that_cannot_be_reached_is_an_answer_and_no_error() -> None:
    found = check_guest({GuestTransport.QGA: refuse}, None, KEY, PREFIX, local_program)
    assert (found.transport, found.component, found.can_freeze) == (None, Component.NONE, False)
    assert set(found.problems) == {GuestTransport.QGA}


def test_an_installed_program_is_found_until_it_is_removed(tmp_path: Path) -> None:
    guest = LocalGuest(tmp_path)
    install_agent(guest, PROGRAM.encode)
    installed = tmp_path / AGENT_PATH.lstrip("/")
    assert installed.stat().st_mode & 0o777 == 0o755
    found = check_guest({GuestTransport.QGA: lambda: guest}, None, KEY, PREFIX, local_program)
    assert found.component is Component.AGENT
    remove_agent(guest)
    remove_agent(guest)
    assert not installed.parent.exists()
