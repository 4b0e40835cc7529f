"""Long operations whose controller is gone: those that may keep others waiting end."""

from __future__ import annotations

import time

from understudy.context import Context
from understudy.errors import Cancelled
from understudy.mover.api import WorkState
from understudy.mover.meter import Meter
from understudy.mover.work import Works


def until_cancelled(ctx: Context, _meter: Meter) -> None:
    while not ctx.cancel.wait(5.0):
        pass
    raise Cancelled


def test_what_nobody_asks_for_is_stopped_and_what_is_asked_for_goes_on() -> None:
    works = Works()
    left, other, asked = (works.start("w", until_cancelled, group) for group in ("verify", "", "verify"))
    time.sleep(0.3)
    assert works.status(asked, 0.0).state is WorkState.RUNNING
    works.cancel_unheard("verify", 0.2)
    ended = works.status(left, 30.0)
    assert ended.error is not None
    assert ended.error.code == "cancelled"
    for going in (asked, other):
        assert works.status(going, 0.0).state is WorkState.RUNNING
    assert works.cancel_all(30.0)
