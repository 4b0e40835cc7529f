"""Throttles in the configuration database: one transaction per function, and what makes a throttle acceptable."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from understudy.controller.catalog import proxy_row
from understudy.controller.database import Database
from understudy.controller.naming import check_name
from understudy.controller.schema import ThrottleRow
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.throttle import Throttle, Window
from understudy.units import KIB

#: Below it a limit divided among proxies would no longer let a frame pass in any sensible time.
LOWEST_RATE = 16 * KIB
HIGHEST_RATE = 1 << 50


def add_throttle(database: Database, throttle: Throttle) -> Throttle:
    """Store a new throttle; running transfers heed it within seconds.

    :raises UsageError: if a field is not acceptable, or it would never limit anything.
    :raises NotFound: if a proxy is unknown.
    :raises Refused: if the name is taken.
    """
    what = f"add throttle {throttle.name!r}"
    check_name(what, throttle.name)
    _check(what, throttle)
    with database.transaction() as session:
        if session.get(ThrottleRow, throttle.name) is not None:
            raise Refused(what, "the name is taken", "choose another name, or remove the old one first")
        row = ThrottleRow(name=throttle.name)
        _fill(session, row, throttle)
        session.add(row)
    return throttle


def list_throttles(database: Database) -> tuple[Throttle, ...]:
    """All throttles by name."""
    with database.reading() as session:
        return tuple(_throttle(row) for row in session.scalars(select(ThrottleRow).order_by(ThrottleRow.name)))


def get_throttle(database: Database, name: str) -> Throttle:
    """The throttle called ``name``.

    :raises NotFound: if there is none.
    """
    with database.reading() as session:
        return _throttle(_row(session, name))


def set_throttle(database: Database, throttle: Throttle) -> Throttle:
    """Give the throttle of this name other settings; running transfers heed them within seconds.

    :raises UsageError: as :func:`add_throttle`.
    :raises NotFound: if there is no such throttle, or a proxy is unknown.
    """
    _check(f"set throttle {throttle.name!r}", throttle)
    with database.transaction() as session:
        _fill(session, _row(session, throttle.name), throttle)
    return throttle


def remove_throttle(database: Database, name: str) -> None:
    """Forget a throttle; running transfers go on without it.

    :raises NotFound: if there is none of that name.
    """
    with database.transaction() as session:
        session.delete(_row(session, name))


def _check(what: str, throttle: Throttle) -> None:
    rates = [rate for rate in (throttle.rate, *(window.rate for window in throttle.windows)) if rate is not None]
    if not rates:
        raise UsageError(what, "it would not limit anything", "give a rate, or a window with a rate")
    wrong = [rate for rate in rates if not LOWEST_RATE <= rate <= HIGHEST_RATE]
    if wrong:
        raise UsageError(what, f"{wrong[0]} bytes/s is no usable rate",
                         f"choose {LOWEST_RATE} to {HIGHEST_RATE} bytes/s, or unlimited")
    if throttle.source_proxy and throttle.source_proxy == throttle.target_proxy:
        raise UsageError(what, "what a proxy copies to itself never leaves its machine", "name two different proxies")


def _fill(session: Session, row: ThrottleRow, throttle: Throttle) -> None:
    for proxy in (throttle.source_proxy, throttle.target_proxy):
        if proxy:
            proxy_row(session, proxy)
    row.source_proxy, row.target_proxy = throttle.source_proxy or None, throttle.target_proxy or None
    row.rate = throttle.rate
    row.windows = [_document(window) for window in throttle.windows]


def _row(session: Session, name: str) -> ThrottleRow:
    row = session.get(ThrottleRow, name)
    if row is None:
        raise NotFound(f"throttle {name!r}", "no such throttle", "see 'understudy throttle list'")
    return row


def _throttle(row: ThrottleRow) -> Throttle:
    windows = tuple(
        Window(frozenset(item["days"]), item["start_minute"], item["end_minute"], item["rate"]) for item in row.windows
    )
    return Throttle(row.name, row.source_proxy or "", row.target_proxy or "", row.rate, windows)


def _document(window: Window) -> dict[str, Any]:
    return {"days": sorted(window.days), "start_minute": window.start_minute, "end_minute": window.end_minute,
            "rate": window.rate}
