"""Tasks of the server: start one, and wait for its end.

A task is watched by asking for a few of its properties, never for its info as a whole, and without anything at the
server that a lost session would take along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from understudy.context import Context
from understudy.errors import PlatformError, TaskUnfinished, UnderstudyError
from understudy.platforms.vsphere import properties
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.faults import Remedy, converted, remedy

_PATHS = ("info.state", "info.error", "info.result", "info.progress")
_STATE = vim.TaskInfo.State


@dataclass(frozen=True)
class Patience:
    """How a task is waited for.

    :ivar deadline_s: from its start to its end. A task that is not through by then may still run.
    :ivar busy_s: for how long a start is tried again, while another task has the object.
    :ivar first_s, longest_s: pauses between two looks; each is longer than the one before.
    """

    deadline_s: float = 3600.0
    busy_s: float = 600.0
    first_s: float = 0.05
    longest_s: float = 2.0


def run(
    ctx: Context,
    connection: Connection,
    what: str,
    start: Callable[[], Any],
    patience: Patience | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Start a task, and return its result when it has ended.

    While another task has the object, the start is tried again.

    :param start: one call of pyVmomi, which returns the task.
    :param progress: is told per cent, as far as the server tells them.
    :raises TaskUnfinished: if it did not end in time.
    :raises Cancelled: if the operator stopped us; the task is left to end by itself.
    """
    patience = patience or Patience()
    tried_until, pause = time.monotonic() + patience.busy_s, patience.first_s
    while True:
        ctx.check()
        try:
            return wait(ctx, connection, what, connection.act(what, start), patience, progress)
        except PlatformError as exc:
            other_task = exc.__cause__ is not None and remedy(exc.__cause__) is Remedy.WAIT
            if not other_task or time.monotonic() >= tried_until:
                raise
        ctx.cancel.wait(pause)
        pause = min(pause * 2, patience.longest_s)


def wait(
    ctx: Context,
    connection: Connection,
    what: str,
    task: Any,
    patience: Patience | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """The result of a task that runs; see :func:`run`."""
    patience = patience or Patience()
    deadline, pause = time.monotonic() + patience.deadline_s, patience.first_s
    while True:
        seen = properties.of(connection, task, _PATHS)
        state = seen.get("info.state")
        if state == _STATE.success:
            return seen.get("info.result")
        if state == _STATE.error:
            raise _failure(what, seen.get("info.error"), connection)
        if progress is not None and seen.get("info.progress") is not None:
            progress(int(seen.get("info.progress")))
        if time.monotonic() >= deadline:
            raise TaskUnfinished(what, f"task {task._moId} did not end within {patience.deadline_s:.0f} s, "
                                 "and may still run", "look at the task in the vSphere client")  # fmt: skip
        ctx.check()
        ctx.cancel.wait(pause)
        pause = min(pause * 2, patience.longest_s)


def _failure(what: str, error: Any, connection: Connection) -> UnderstudyError:
    """The error of a task. pyVmomi gives the fault itself, or wrapped with its text."""
    if error is None:
        return PlatformError(what, "the task failed, and the server does not say why")
    fault = getattr(error, "fault", None) or error
    if fault is not error and not fault.msg:
        fault.msg = error.localizedMessage
    failure = converted(what, fault, connection.name_of)
    failure.__cause__ = fault
    return failure
