"""The administrator's scripts: read from this host when the task begins, run in the guest one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import GuestError, Refused
from understudy.guests.program import Program
from understudy.guests.transport import go_on

#: The status of a script that was ended at its time limit.
KILLED = 124


@dataclass(frozen=True)
class Script:
    """A script of the administrator, as it was when the task began."""

    name: str
    content: bytes


def load_scripts(paths: Sequence[str]) -> tuple[Script, ...]:
    """Read scripts from this host, in their order.

    :raises Refused: if one cannot be read.
    """
    scripts = []
    for number, path in enumerate(paths, 1):
        try:
            scripts.append(Script(f"{number}-{Path(path).name}", Path(path).read_bytes()))
        except OSError as exc:
            todo = "put it there, or change the scripts of the job"
            raise Refused(f"script {path}", f"it cannot be read: {exc.strerror}", todo) from exc
    return tuple(scripts)


def run_script(
    program: Program, when: str, script: Script, timeout_s: float, check: Callable[[], object] = go_on
) -> None:
    """Run one in the guest; ``check`` is called meanwhile and may raise.

    :raises GuestError: if it did not end with status 0 in time.
    """
    try:
        status = program.script(script.name, script.content, timeout_s, check)
    except GuestError as exc:
        raise GuestError(f"{when} script {script.name}", str(exc)) from exc
    if status != 0:
        why = f"it ended with status {status}"
        if status == KILLED:
            why += f", which is that of a script killed after {timeout_s:g} s"
        raise GuestError(f"{when} script {script.name}", why, "see what it wrote in the log of the controller")
