"""Fault points: places where a test may stop, break or kill this process.

The crash tests must be able to kill a real process at an exact place. ``UNDERSTUDY_FAULT=<point>=<act>[,...]`` names
the places; without the variable a fault point does nothing. Acts:

``kill``    SIGKILL to this process, as a crash would.
``sigint``  SIGINT to this process, as Ctrl-C would; the point then waits until the cancellation arrives or 20 s passed.
``error``   an error as an operation at this place could raise it.
``stall``   wait until the file named by ``UNDERSTUDY_FAULT_RELEASE`` exists; it writes ``<that file>.reached`` first.

With ``UNDERSTUDY_FAULT_TRACE=<file>`` every fault point that is reached appends its name to that file, so that a test
can learn which points lie on the way of what it does.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from understudy.errors import UnderstudyError

VARIABLE = "UNDERSTUDY_FAULT"
RELEASE_VARIABLE = "UNDERSTUDY_FAULT_RELEASE"
TRACE_VARIABLE = "UNDERSTUDY_FAULT_TRACE"


def fault_point(name: str) -> None:
    """A place called ``name`` where a test may intervene; nothing happens unless the environment names it."""
    trace = os.environ.get(TRACE_VARIABLE)
    if trace:
        with Path(trace).open("a") as out:
            out.write(f"{name}\n")
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    for item in wanted.split(","):
        point, _, act = item.partition("=")
        if point == name:
            _act(name, act)


def _act(name: str, act: str) -> None:
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "sigint":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)
    elif act == "error":
        raise UnderstudyError(f"fault point {name}", "a test asked for an error here")
    elif act == "stall":
        _stall(Path(os.environ[RELEASE_VARIABLE]))
    else:
        raise UnderstudyError(f"fault point {name}", f"unknown act {act!r}")


def _stall(release: Path) -> None:
    release.with_name(release.name + ".reached").touch()
    while not release.exists():
        time.sleep(0.02)
