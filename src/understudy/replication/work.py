"""Long operations of a mover, seen to their end."""

from __future__ import annotations

from collections.abc import Callable

from understudy.context import Context
from understudy.errors import UnderstudyError, from_fields
from understudy.mover import api
from understudy.mover.client import MoverClient

_WAIT_S = 0.3


def finish(
    ctx: Context, mover: MoverClient, request: object, on_progress: Callable[[api.Progress], None] | None = None
) -> api.WorkStatus:
    """Start the long operation ``request``, follow it, and return its final status.

    :raises Cancelled: if the operator ends it; the operation is stopped then.
    :raises UnderstudyError: what made the operation fail.
    """
    work = mover.call(request, api.WorkStarted).work
    try:
        while True:
            status = mover.call(api.WorkQuery(work, _WAIT_S), api.WorkStatus)
            if on_progress is not None:
                on_progress(status.progress)
            if status.state is not api.WorkState.RUNNING:
                break
            ctx.check()
    except BaseException:
        _cancel(ctx, mover, work)
        raise
    if status.error is not None:
        error = status.error
        raise from_fields(error.code, error.what, error.why, error.todo)
    return status


def _cancel(ctx: Context, mover: MoverClient, work: str) -> None:
    """Stop the operation; a mover that is gone has stopped already, and must not hide why this ends."""
    try:
        mover.call(api.CancelWork(work), api.Nothing)
    except UnderstudyError as exc:
        ctx.log(__name__).warning("stop of work %s: %s", work, exc)
