"""Can a guest be processed: what answers in it, what would be quiesced? And the program that is installed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from understudy.errors import GuestError, UnderstudyError
from understudy.guests.component import component_for, shell_component
from understudy.guests.program import AGENT_PATH, Program, prepare_program
from understudy.guests.qga import AgentCommand, enabled_commands
from understudy.guests.transport import Transport
from understudy.model.guest import Component, GuestSystem, GuestTransport

UNIT_PATH = "/etc/systemd/system/understudy-guest.service"
_INSTALL_S = 30.0
# It has nothing to serve: it thaws and removes what sessions left that a crash of the guest ended.
_UNIT = f"""[Unit]
Description=Understudy guest program: remove what interrupted sessions left

[Service]
Type=oneshot
ExecStart=/bin/sh {AGENT_PATH} cleanup

[Install]
WantedBy=multi-user.target
"""
_MAKE = f"umask 022 && mkdir -p {AGENT_PATH.rpartition('/')[0]}"
_ENABLE = f"systemctl daemon-reload && systemctl enable --quiet {UNIT_PATH.rpartition('/')[2]}"
_REMOVE = f"""if [ -f {UNIT_PATH} ]; then
    if [ -d /run/systemd/system ]; then systemctl disable --quiet {UNIT_PATH.rpartition('/')[2]}; fi
    rm -f {UNIT_PATH}
fi
rm -f {AGENT_PATH}; rmdir {AGENT_PATH.rpartition('/')[0]} 2>/dev/null; true"""


@dataclass(frozen=True)
class GuestCheck:
    """What a session would find.

    :ivar transport: the one that it would use; None if no program can run in the guest.
    :ivar problems: by transport: why it cannot be used.
    :ivar applications: kind, name and detail of each.
    :ivar can_freeze: whether the guest agent freezes file systems, or the program does.
    """

    transport: GuestTransport | None
    problems: Mapping[GuestTransport, str]
    component: Component
    version: str
    applications: tuple[tuple[str, str, str], ...]
    can_freeze: bool


def check_guest(
    ways: Mapping[GuestTransport, Callable[[], Transport]], agent: AgentCommand | None, key: str, prefix: str,
    program: Callable[[GuestSystem], bytes] = component_for,
) -> GuestCheck:
    """Try the transports in their order, and look for applications; nothing is frozen, and nothing stays there."""
    problems: dict[GuestTransport, str] = {}
    agent_freezes = False
    if agent is not None:
        try:
            agent_freezes = {"guest-fsfreeze-freeze", "guest-fsfreeze-thaw"} <= enabled_commands(agent)
        except UnderstudyError as exc:
            problems[GuestTransport.QGA] = str(exc)
    for kind, way in ways.items():
        try:
            transport = way()
            try:
                return _look(transport, problems, agent_freezes, prepare_program(transport, key, prefix, program))
            finally:
                transport.close()
        except UnderstudyError as exc:
            problems[kind] = str(exc)
    return GuestCheck(None, problems, Component.NONE, "", (), agent_freezes)


def _look(
    transport: Transport, problems: Mapping[GuestTransport, str], agent_freezes: bool, program: Program
) -> GuestCheck:
    try:
        found = program.discover()
    finally:
        program.remove()
    freezes = agent_freezes or transport.kind in (GuestTransport.SSH, GuestTransport.VMTOOLS)
    return GuestCheck(transport.kind, problems, program.component, program.version, found, freezes)


def install_agent(transport: Transport, program: Callable[[], bytes] = shell_component) -> None:
    """Put the program into the guest for good, with a unit of systemd where that runs.

    :raises GuestError: if it could not be put there, or is not for this kind of guest.
    """
    _only_posix(transport)
    _must(transport, _MAKE)
    transport.put(AGENT_PATH, program(), 0o755, _INSTALL_S)
    if _has_systemd(transport):
        transport.put(UNIT_PATH, _UNIT.encode(), 0o644, _INSTALL_S)
        _must(transport, _ENABLE)


def remove_agent(transport: Transport) -> None:
    """Take the installed program away; no error if there is none.

    :raises GuestError: if it could not be removed.
    """
    _only_posix(transport)
    _must(transport, _REMOVE)


def _only_posix(transport: Transport) -> None:
    if transport.system is GuestSystem.WINDOWS:
        raise GuestError("installed program in the guest", "there is none for Windows guests",
                         "sessions put the program there by themselves, and remove it")


def _has_systemd(transport: Transport) -> bool:
    return transport.run(["/bin/sh", "-c", "test -d /run/systemd/system"], _INSTALL_S).status == 0


def _must(transport: Transport, script: str) -> None:
    done = transport.run(["/bin/sh", "-c", script], _INSTALL_S)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise GuestError("installed program in the guest", said or f"status {done.status}")
